"""Plays scenarios beside each other on one stack: starts runs, watches, ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import yaml
from trainvitals import rundir

from benchmarks.faultbench.compression import compress_folder, duration, seconds
from benchmarks.faultbench.judgement import Verdict, judge
from benchmarks.faultbench.observations import Alert, Observer
from benchmarks.faultbench.scenarios import Scenario
from benchmarks.faultbench.shapes import course
from examples.demo import stack
from examples.demo.programs import Programs, end_group
from examples.demo.receiver import Receiver
from tests.fake_nvml.build import build

BENCH: Final = Path(__file__).parent
GPUS: Final = 48
# How far Prometheus looks back for the newest sample: its default, and what a busy machine needs in real time.
_LOOKBACK_SECONDS: Final = 300.0
_SHORTEST_LOOKBACK_SECONDS: Final = 60.0
_KEEP_ENDED_SECONDS: Final = 900.0
# Torch takes its time to be imported, many times at once even more.
_START_SECONDS: Final = 120.0
_PATIENCE_SECONDS: Final = 10.0
# What is wrong besides may show a little later.
_AFTERMATH_SECONDS: Final = 60.0


@dataclass
class Patient:
    """A scenario that is being played."""

    scenario: Scenario
    process: subprocess.Popen[bytes]
    folder: Path
    started: float
    settled: float | None = None

    @property
    def beginning(self) -> float | None:
        """Unix time of its first batch."""
        return self._told("beginning")

    @property
    def onset(self) -> float | None:
        """Unix time at which its fault began."""
        return self._told("onset")

    def _told(self, name: str) -> float | None:
        try:
            return float((self.folder / name).read_text())
        except FileNotFoundError:
            return None

    def interrupt(self) -> None:
        """End it as Ctrl-C would, so that the end is no news to anybody."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)


class Ward:
    """The stack, and the runs on it. A context manager that ends all of it."""

    def __init__(self, work: Path, factor: float, host_gib: float | None = None) -> None:
        self._work, self._factor, self._host_gib = work, factor, host_gib
        self._patients: list[Patient] = []
        self._leaving: list[tuple[Patient, float]] = []
        self._cleanup = contextlib.ExitStack()
        self._gpu_lines = ""
        self.notes: list[str] = []

    def __enter__(self) -> Ward:
        (self._work / "runs").mkdir(mode=0o700)
        build(self._work / "driver")
        self._say_to_driver()
        self._show_memory()
        self._receiver = self._cleanup.enter_context(Receiver())
        self._programs = self._cleanup.enter_context(Programs(self._work))
        webhook = f"http://127.0.0.1:{self._receiver.port}/"
        lookback = max(_LOOKBACK_SECONDS / self._factor, _SHORTEST_LOOKBACK_SECONDS)
        tuning = stack.Tuning(
            prepare=self._compress,
            exporter_environment={
                **self._environment(),
                "LD_LIBRARY_PATH": str(self._work / "driver"),
                "FAKE_NVML_GPUS": str(GPUS),
                "FAKE_NVML_STATE": str(self._work / "driver-state"),
            },
            exporter_arguments=["--keep-ended", str(_KEEP_ENDED_SECONDS / self._factor)],
            prometheus_arguments=[f"--query.lookback-delta={duration(lookback)}"],
            grafana=False,
        )
        self.addresses = stack.start_native(self._programs, self._work, self._work / "runs", webhook, tuning)
        self.observer = Observer(self.addresses.prometheus, self._receiver)
        return self

    def __exit__(self, *exception: object) -> None:
        self._cleanup.close()

    def play(self, scenarios: Sequence[Scenario], jobs: int) -> Iterator[Verdict]:
        """Play them all, so many at once; verdicts come as they are reached."""
        waiting = list(scenarios)
        while waiting or self._patients:
            room = jobs - sum(patient.scenario.weight for patient in self._patients)
            fits = next((each for each in waiting if each.weight <= room or not self._patients), None)
            if fits is not None:
                waiting.remove(fits)
                self._start(fits)
            self._see_out()
            self._say_to_driver()
            self._show_memory()
            self.observer.look()
            for patient in [patient for patient in self._patients if self._done(patient)]:
                yield self._end(patient)
            time.sleep(0.2)

    def unclaimed(self) -> list[Alert]:
        """Alerts above info that belong to no run and no GPU."""
        return [a for a in self.observer.alerts if a.above_info and not {"run", "uuid"} & a.labels.keys()]

    def _start(self, scenario: Scenario) -> None:
        folder = self._work / scenario.name
        folder.mkdir()
        script = ["-m", f"benchmarks.faultbench.shapes.{scenario.shape}", *self._options(scenario, folder)]
        command = [
            sys.executable, "-m", "trainvitals.cli", "run", "--quiet", "--name", scenario.name, "--",
            sys.executable, *script,
        ]  # fmt: skip
        if scenario.mounts:
            command = _with_mounts(command, folder, scenario)
        environment = {
            **self._environment(),
            rundir.ENVIRONMENT: str(self._work / "runs"),
            course.BEGINNING_FILE: str(folder / "beginning"),
            course.ONSET_FILE: str(folder / "onset"),
            course.GPU_FILE: str(folder / "gpu"),
        }
        if scenario.gpu is not None:
            environment["FAULTBENCH_GPU"] = str(scenario.gpu)
        process = self._programs.start(scenario.name, command, environment)
        self._patients.append(Patient(scenario, process, folder, time.time()))

    def _options(self, scenario: Scenario, folder: Path) -> list[str]:
        length = ["--length", str(scenario.length / self._factor)] if scenario.ends else []
        return [
            "--fault", scenario.fault, "--seed", str(scenario.seed), "--pace", str(scenario.pace),
            "--onset", str(scenario.onset / self._factor), "--output", str(folder), *length, *scenario.arguments,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        paths = [BENCH / "patches", stack.REPOSITORY, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return {
            **os.environ,
            **self._host(),
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)),
            course.FACTOR: str(self._factor),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _done(self, patient: Patient) -> bool:
        scenario, now = patient.scenario, time.time()
        scale = 1 / self._factor
        if scenario.healthy:
            # Where it has a length, a moment more, in which its end could be taken for a fault.
            begun = patient.beginning or patient.started + _START_SECONDS
            return now - begun > (scenario.length + 5 * _AFTERMATH_SECONDS * scenario.ends) * scale
        if patient.onset is None:
            return now - patient.started > _START_SECONDS + scenario.onset * scale
        fired = [a for a in self._alerts_of(patient) if a.name == scenario.expect and a.matches(scenario.says)]
        told = fired and (fired[0].notified is not None or not scenario.immediate)
        if told and patient.settled is None:
            patient.settled = now + max(2.0, _AFTERMATH_SECONDS * scale)
        return now > (patient.settled or patient.onset + scenario.patience * scale)

    def _end(self, patient: Patient) -> Verdict:
        self._patients.remove(patient)
        trouble = self._trouble(patient)
        alerts = self._alerts_of(patient)
        watched = time.time() - (patient.beginning or patient.started)
        patient.interrupt()
        self._leaving.append((patient, time.monotonic() + _PATIENCE_SECONDS))
        return judge(patient.scenario, alerts, patient.onset, watched, trouble)

    def _see_out(self) -> None:
        """Insist where one has not ended in time."""
        for patient, deadline in [each for each in self._leaving if each[1] < time.monotonic()]:
            self._leaving.remove((patient, deadline))
            end_group(patient.process)

    def _trouble(self, patient: Patient) -> str:
        """What went wrong with the playing itself."""
        scenario, code = patient.scenario, patient.process.poll()
        if not scenario.healthy and patient.onset is None:
            return f"the fault never began: {self._programs.last_words(scenario.name)[-200:]}"
        if scenario.healthy and code not in ((0, None) if scenario.ends else (None,)):
            return f"ended with exit code {code}: {self._programs.last_words(scenario.name)[-200:]}"
        return ""

    def _alerts_of(self, patient: Patient) -> list[Alert]:
        gpu = patient.scenario.gpu
        uuid = "" if gpu is None else f"GPU-00000000-0000-0000-0000-{gpu:012}"
        return [
            alert
            for alert in self.observer.alerts
            if alert.labels.get("run") == patient.scenario.name
            or (uuid and "run" not in alert.labels and alert.labels.get("uuid") == uuid)
        ]

    def _compress(self, folder: Path) -> None:
        self.notes = compress_folder(folder, folder, self._factor)
        for path in folder.glob("alertmanager/*.yml"):
            content = yaml.safe_load(path.read_text())
            if "route" in content:
                _compress_route(content["route"], self._factor)
                path.write_text(yaml.safe_dump(content))

    def _host(self) -> dict[str, str]:
        if self._host_gib is None:
            return {}
        return {"FAULTBENCH_MEMINFO": str(self._work / "host"), course.HOST_BYTES: str(int(self._host_gib * 2**30))}

    def _show_memory(self) -> None:
        """Where a smaller machine is played: what the runs have left of its memory."""
        if self._host_gib is None:
            return
        groups = {patient.process.pid for patient in self._patients}
        used = sum(
            process.info["memory_info"].rss
            for process in psutil.process_iter(["memory_info"])
            if process.info["memory_info"] is not None and _group_of(process.pid) in groups
        )
        total = int(self._host_gib * 2**20)
        folder = self._work / "host"
        folder.mkdir(exist_ok=True)
        left = max(0, total * 9 // 10 - used // 1024)
        (folder / "meminfo.new").write_text(f"MemTotal: {total} kB\nMemAvailable: {left} kB\n")
        (folder / "meminfo.new").rename(folder / "meminfo")

    def _say_to_driver(self) -> None:
        """What the runs want the fake driver to report, all together."""
        lines, events = ["gpu*.utilization=0", "gpu*.power_milliwatts=20000", "gpu*.memory_used=0"], []
        for patient in self._patients:
            path = patient.folder / "gpu"
            if patient.scenario.gpu is None or not path.exists():
                continue
            for line in path.read_text().splitlines():
                key, _, value = line.partition("=")
                if key == "xid":
                    events.append((patient.started, patient.scenario.gpu, value))
                else:
                    lines.append(f"gpu{patient.scenario.gpu}.{line}")
        told = ";".join(f"{1 + gpu}/{gpu}/{xid}" for _, gpu, xid in sorted(events))
        text = "\n".join([f"events={told}", *lines]) + "\n"
        if text != self._gpu_lines:
            self._gpu_lines = text
            new = self._work / "driver-state.new"
            new.write_text(text)
            new.rename(self._work / "driver-state")


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _with_mounts(command: list[str], folder: Path, scenario: Scenario) -> list[str]:
    """The command in a mount namespace of its own, with small filesystems in memory."""
    mounts = []
    for place, mebibytes in scenario.mounts.items():
        target = folder / place  # an absolute one stays as it is
        mounts.append(f"mkdir -p '{target}' && mount -t tmpfs -o size={mebibytes}m,mode=1777 bench '{target}'")
    return ["unshare", "-m", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", *command]


def _compress_route(route: dict[str, object], factor: float) -> None:
    for key in ("group_wait", "group_interval", "repeat_interval"):
        if key in route:
            route[key] = duration(seconds(str(route[key])) / factor)
    for child in route.get("routes", []):  # type: ignore[attr-defined]
        _compress_route(child, factor)


@contextlib.contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    """A temporary folder, or the one given, which stays."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="trainvitals-faultbench-") as name:
        yield Path(name)
