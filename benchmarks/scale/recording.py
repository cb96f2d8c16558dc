"""Records what one host with 8 GPUs and a training of 8 ranks tells: a few scrapes of a real exporter.

`python -m benchmarks.scale.recording FOLDER` writes scrape-0.prom and so on there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from trainvitals import rundir

from benchmarks.scale.training import RANKS
from examples.demo.programs import Programs, free_ports
from tests.fake_nvml.build import build

SCRAPES = 6
APART = 5.0  # seconds
PATIENCE = 300.0
_LATE = "\ntrainvitals_checkpoint_last_interval_iterations{"
PROFILE = Path(__file__).parents[2] / "tests" / "fake_nvml" / "profiles" / "everything"


def record(folder: Path, scrapes: int = SCRAPES, apart: float = APART) -> list[str]:
    """The texts of so many scrapes, so many seconds apart, also left in `folder`."""
    with tempfile.TemporaryDirectory(prefix="trainvitals-scale-") as scratch, Programs(Path(scratch)) as programs:
        work = Path(scratch)
        (work / "runs").mkdir(mode=0o700)
        build(work / "driver")
        # Of the profile's eight GPUs one is divided, which no training on eight GPUs has, and one reports an XID.
        profile = PROFILE.read_text().splitlines(keepends=True)
        kept = [line for line in profile if not line.startswith(("gpu7.mig", "events", "gpu*.process"))]
        processes = "gpu*.processes=5000001:64424509440\ngpu*.process_utilization=5000001:90\n"
        (work / "profile").write_text("".join((*kept, processes)))
        port, master = free_ports(2)
        environment = {**os.environ, rundir.ENVIRONMENT: str(work / "runs")}
        programs.start("training", [
            sys.executable, "-m", "trainvitals.cli", "run", "--name", "gan", "--overhead", "1", "--",
            sys.executable, "-m", "benchmarks.scale.training", work, str(master),
        ], environment)  # fmt: skip
        driver = {
            "LD_LIBRARY_PATH": str(work / "driver"),
            "FAKE_NVML_PROFILE": str(work / "profile"),
            "FAKE_NVML_GPUS": str(RANKS),
        }
        programs.start(
            "exporter",
            [sys.executable, "-m", "trainvitals_exporter", "--listen", f"127.0.0.1:{port}", "--run-dir", work / "runs"],
            {**environment, **driver},
        )
        url = f"http://127.0.0.1:{port}/metrics"
        programs.wait_for("exporter", url)
        _wait_until_settled(url, programs)
        texts = []
        for number in range(scrapes):
            time.sleep(apart if number else 0)
            texts.append(_scrape(url))
            (folder / f"scrape-{number}.prom").write_text(texts[-1])
        return texts


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 (our own)
        return str(response.read().decode())


def _wait_until_settled(url: str, programs: Programs) -> None:
    """By then each rank shows what takes 50 steps to be known, and checkpoints were saved."""
    deadline = time.monotonic() + PATIENCE
    while (text := _scrape(url)).count("\ntrainvitals_gradient_norm_baseline{") < 2 * RANKS or _LATE not in text:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the training does not get on:\n{programs.last_words('training')}")
        time.sleep(1)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for text in record(target):
        print(sum(not line.startswith("#") for line in text.splitlines()), "series")
