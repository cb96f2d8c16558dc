"""A machine that is not there: its scrapes, the same at each call, through the real parser and model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from trainvitals_exporter.top.model import Machine, MachineView
from trainvitals_exporter.top.overview import Picture, SourceView
from trainvitals_exporter.top.samples import Parser
from trainvitals_exporter.top.sources import Alert, Scrape

NOW = 1_800_000_000.0
SECONDS = 240
STATES = ("starting", "running", "finished", "failed", "killed", "out_of_memory")
SHARES = {"data_wait": 0.06, "transfer": 0.02, "forward": 0.33, "backward": 0.46, "optimizer": 0.08, "checkpoint": 0.03,
          "other": 0.02}  # fmt: skip
ALERT = Alert("TrainingGradientExplosion", "firing", "critical", "tts-large", "gradient norm 60 times its usual", "")


def sample(name: str, value: float, /, **labels: object) -> str:
    """A line of a scrape."""
    pairs = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"trainvitals_{name}{{{pairs}}} {float(value)}\n"


def run_state(run: str, state: str) -> str:
    return "".join(sample("run_state", each == state, run=run, state=each) for each in STATES)


def run(
    run: str, ranks: int, second: float, *, speed: float = 4.0, loss: float = 2.0, gpus: int = 0, nan: bool = False
) -> Iterator[str]:
    """A run that trains, at its so many-th second."""
    yield run_state(run, "running")
    yield sample("run_start_timestamp_seconds", NOW - 8000, run=run)
    yield sample("run_label_info", 1, run=run, label="branch", value="main")
    falling = loss * (0.5 + math.exp(-second / 90)) * (1 + 0.06 * math.sin(second * 1.7))
    for rank in map(str, range(ranks)):
        of = {"run": run, "rank": rank}
        yield sample("run_info", 1, **of, run_id="1d226f6cf671", pid=4000 + int(rank), script="train.py",
                     framework="lightning", torch_version="2.13.0", cuda_version="13.0")  # fmt: skip
        yield sample("run_owner_info", 1, **of, user="ada", slurm_job="8812", kubernetes_pod="", container_id="")
        yield sample("world_size", ranks, **of)
        yield sample("epoch", 12, **of)
        iterations = 48000 + int(speed * second)
        yield sample("iterations_total", iterations, **of)
        yield sample("samples_total", 16 * iterations, **of)
        yield sample("iterations_per_second", speed * (1 + 0.1 * math.sin(second / 9)), **of)
        yield sample("heartbeat_timestamp_seconds", NOW + second - 0.3, **of)
        for optimizer, kind in enumerate(("AdamW", "SGD")):
            each = {**of, "optimizer": optimizer}
            yield sample("optimizer_info", 1, **each, **{"class": kind}, parameters=2_629_200)
            yield sample("loss", math.nan if nan else falling * (1 + optimizer), **each)
            yield sample("gradient_norm", 1.2 + 0.3 * math.sin(second / 5) + (4 if second % 60 == 50 else 0), **each)
            yield sample("gradient_norm_max", 5.5, **each)
            yield sample("gradient_norm_baseline", 1.2, **each)
            yield sample("learning_rate", 0.0002, **each, group=0)
            yield sample("optimizer_steps_total", iterations, **each)
            yield sample("gradient_anomalies_total", 3 if optimizer else 0, **each, kind="explosion")
            yield sample("loss_anomalies_total", 0, **each, kind="nonfinite")
        for phase, share in SHARES.items():
            yield sample("phase_seconds_total", share * (8000 + second), **of, phase=phase)
        yield sample("checkpoint_last_timestamp_seconds", NOW + second - 200, **of)
        yield sample("checkpoint_last_bytes", 812e6, **of)
        yield sample("process_cpu_seconds_total", 1.4 * second, **of, role="main")
        yield sample("process_resident_bytes", 6.1e9, **of, role="main")
        for tag in ("loss/g/mel", "loss/g/kl", "grad_norm_d", "learning_rate"):
            yield sample("scalar", falling / len(tag), **of, tag=tag)
        if gpus:
            device = int(rank) % gpus
            yield sample("run_gpu_info", 1, **of, uuid=f"GPU-{device}")
            yield sample("cuda_memory_allocated_bytes", (52 + 3 * math.sin(second / 20)) * 2**30, **of, device=device)
            yield sample("cuda_memory_reserved_bytes", 66 * 2**30, **of, device=device)
    yield sample("anomaly_info", 1, run=run, rank="0", optimizer="0", kind="explosion", iteration=48123,
                 parameters="dec.ups.0.weight", samples="tom_0113.wav")  # fmt: skip


def gpus(number: int, second: float) -> Iterator[str]:
    for gpu in range(number):
        of = {"gpu": gpu, "uuid": f"GPU-{gpu}"}
        yield sample("gpu_info", 1, **of, name="NVIDIA H100 80GB HBM3")
        yield sample("gpu_utilization_ratio", 0.9 + 0.08 * math.sin(second / 7 + gpu), **of)
        yield sample("gpu_memory_used_bytes", (67.2 + gpu / 10) * 2**30, **of)
        yield sample("gpu_memory_total_bytes", 79.6 * 2**30, **of)
        yield sample("gpu_power_watts", 640 + 8 * gpu, **of)
        yield sample("gpu_power_limit_watts", 700, **of)
        yield sample("gpu_temperature_celsius", 61 + 4 * gpu, **of)
        yield sample("gpu_clocks_event_active", gpu == 1, **of, reason="sw_power_cap")
        yield sample("gpu_clocks_event_active", gpu == 6, **of, reason="hw_thermal_slowdown")


def host(second: float) -> Iterator[str]:
    for cpu in range(64):
        yield sample("host_cpu_seconds_total", 1000 + 0.41 * second, cpu=cpu, mode="user")
        yield sample("host_cpu_seconds_total", 1000 + 0.59 * second, cpu=cpu, mode="idle")
    yield sample("host_load1", 26.4).replace("{}", "")
    yield sample("host_memory_total_bytes", 504 * 2**30)
    yield sample("host_memory_available_bytes", 391 * 2**30)
    yield sample("host_filesystem_size_bytes", 7e12, mountpoint="/data")
    yield sample("host_filesystem_avail_bytes", 0.4e12, mountpoint="/data")
    yield sample("host_disk_busy_seconds_total", 0.22 * second, device="nvme0n1")


def ended(run: str, state: str) -> Iterator[str]:
    yield run_state(run, state)
    yield sample("run_start_timestamp_seconds", NOW - 50000, run=run)
    yield sample("run_exit_code", 137, run=run)
    yield sample("run_info", 1, run=run, rank="0", pid=77, script="train.py")
    yield sample("iterations_total", 182_400, run=run, rank="0")
    yield sample("epoch", 40, run=run, rank="0")
    yield sample("loss", 0.4812, run=run, rank="0", optimizer="0")
    yield sample("gradient_norm", 0.731, run=run, rank="0", optimizer="0")


def scrape(second: float) -> str:
    """Eight GPUs, four runs that train, one without a finite loss, and two that have ended."""
    parts = [
        *host(second), *gpus(8, second),
        *run("tts-large", 8, second, speed=3.1, gpus=8),
        *run("语音克隆-s2", 1, second, speed=0.82, loss=22),
        *run("vocoder-bf16", 1, second, speed=11, nan=second > 150),
        *run("vits-finetune", 2, second, speed=6.4, gpus=8),
        *ended("tts-small", "finished"), *ended("tts-huge", "out_of_memory"),
    ]  # fmt: skip
    return "".join(parts)


def machine(seconds: int = SECONDS) -> MachineView:
    """What that machine shows after having been watched for so long."""
    parser, watched = Parser(), Machine("gpu-01")
    views = [watched.update(Scrape(parser.parse(scrape(second)), NOW + second), second) for second in range(seconds)]
    return views[-1]


@functools.cache
def picture(seconds: int = SECONDS) -> Picture:
    """A screen's worth, with an alert."""
    return Picture((machine(seconds),), (SourceView("gpu-01:10288", None, ""),), (ALERT,), "03:14:15")
