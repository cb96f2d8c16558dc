"""``make demo``: a healthy training run, then one that falls ill, and the notification that says what is wrong.

Exits with 0 if the healthy run raised no alert and the sick one the right one, else with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainvitals import rundir

from examples.demo import stack
from examples.demo.programs import DemoError, Programs, end_group
from examples.demo.receiver import Receiver

TRAINER: Final = stack.REPOSITORY / "examples" / "voice_clone" / "train.py"
EXPECTED: Final = "TrainingGradientExplosion"
HEALTHY_SECONDS: Final = 75.0
PATIENCE_SECONDS: Final = 240.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a healthy and a sick run, and show the alert.")
    parser.add_argument("--native", action="store_true", help="do not use Docker, even where there is an engine")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="trainvitals-demo-") as work, contextlib.ExitStack() as cleanup:
            return _show(Path(work), cleanup, native=options.native or not stack.docker_engine())
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ndemo: stopped; everything it had started has ended", file=sys.stderr)
        return 130
    return 1


def _show(work: Path, cleanup: contextlib.ExitStack, *, native: bool) -> int:
    run_dir = work / "runs"
    run_dir.mkdir(mode=0o700)
    receiver = cleanup.enter_context(Receiver("127.0.0.1" if native else stack.docker_receiver_host()))
    programs = cleanup.enter_context(Programs(work))
    _say(f"starting exporter, Prometheus and Alertmanager ({'programs of this machine' if native else 'Docker'})")
    if native:
        addresses = stack.start_native(programs, work, run_dir, f"http://127.0.0.1:{receiver.port}/")
    else:
        webhook = f"http://host.docker.internal:{receiver.port}/"
        addresses = cleanup.enter_context(stack.Compose(work, run_dir, webhook)).start()
    _say(f"Prometheus    {addresses.prometheus}/alerts")
    _say(f"Alertmanager  {addresses.alertmanager}")
    _say(f"Grafana       {addresses.grafana or 'is not installed here; the dashboard is in grafana/dashboards'}")

    _say(f"training a healthy run for {HEALTHY_SECONDS:.0f} s: trainvitals run -- python train.py --stage s2")
    healthy = _train(programs, work, run_dir, "healthy", "none")
    alarms = _collect(receiver, programs, "healthy", healthy, HEALTHY_SECONDS)
    _stop(healthy)
    if alarms:
        raise DemoError(f"the healthy run raised {', '.join(alarm['labels']['alertname'] for alarm in alarms)}")
    _say("no alert: healthy")

    _say("training a run whose gradients will explode: the same with --fault grad-explosion")
    sick = _train(programs, work, run_dir, "sick", "grad-explosion")
    started = time.monotonic()
    alarms = _collect(receiver, programs, "sick", sick, PATIENCE_SECONDS, until=EXPECTED)
    _stop(sick)
    if not alarms or alarms[-1]["labels"]["alertname"] != EXPECTED:
        raise DemoError(f"{EXPECTED} did not arrive within {PATIENCE_SECONDS:.0f} s\n{programs.last_words('sick')}")
    _say(f"the notification came {time.monotonic() - started:.0f} s after the start of the run")
    return 0


def _train(programs: Programs, work: Path, run_dir: Path, name: str, fault: str) -> subprocess.Popen[bytes]:
    command: list[str | Path] = [
        sys.executable, "-m", "trainvitals.cli", "run", "--quiet", "--name", name, "--",
        sys.executable, TRAINER, "--stage", "s2", "--epochs", "1000", "--fault", fault, "--fault-after", "120",
        "--output", work / "training",
    ]  # fmt: skip
    return programs.start(name, command, {**os.environ, rundir.ENVIRONMENT: str(run_dir), "TMPDIR": str(work)})


def _stop(training: subprocess.Popen[bytes]) -> None:
    # As Ctrl-C would, so that the end is no news to anybody.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(training.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        training.wait(15)
    end_group(training)


def _collect(
    receiver: Receiver,
    programs: Programs,
    run: str,
    training: subprocess.Popen[bytes],
    seconds: float,
    until: str | None = None,
) -> list[dict[str, Any]]:
    """The firing alerts that arrive for this run within `seconds`, up to the one named `until`; shown as they come."""
    alarms = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if training.poll() is not None:
            raise DemoError(f"the training ended with exit code {training.returncode}:\n{programs.last_words(run)}")
        _progress(run, seconds - left, programs)
        with contextlib.suppress(queue.Empty):
            alert = receiver.alerts.get(timeout=min(left, 2.0))
            if alert["labels"].get("run") != run or alert["status"] != "firing":
                continue
            alarms.append(alert)
            _show_alert(alert)
            if alert["labels"]["alertname"] == until:
                break
    return alarms


def _progress(run: str, seconds: float, programs: Programs) -> None:
    words = programs.last_words(run).splitlines()
    print(f"\r  {seconds:4.0f} s  {(words[-1] if words else 'starting')[:100]:100}", end="", flush=True)


def _show_alert(alert: dict[str, Any]) -> None:
    labels, annotations = alert["labels"], alert["annotations"]
    print(f"\r{'':110}\r  +--- notification: {labels['alertname']} ({labels['severity']}), run {labels['run']}")
    for part in ("summary", "description", "runbook_url"):
        for line in textwrap.wrap(annotations.get(part, ""), 96):
            print(f"  | {line}")
    print("  +---", flush=True)


def _say(text: str) -> None:
    print(f"\r{'':110}\r{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
