"""The command line of `trainvitals doctor`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trainvitals import rundir

from trainvitals_exporter.doctor import (
    alertmanager,
    exporter,
    gpu,
    grafana,
    machine,
    prometheus,
    run_directory,
    training_python,
)  # fmt: skip
from trainvitals_exporter.doctor.findings import NOT_CHECKED, OK, PROBLEM, WARNING, Check, Finding, Where, not_checked
from trainvitals_exporter.messages import printable
from trainvitals_exporter.stack.state import State

CHECKS: Final[dict[str, Check]] = {
    "machine": machine.check,
    "training": training_python.check,
    "gpu driver": gpu.check,
    "run directory": run_directory.check,
    "exporter": exporter.check,
    "prometheus": prometheus.check,
    "alertmanager": alertmanager.check,
    "grafana": grafana.check,
}
# A driver may hang for ever, and so may a network filesystem.
PATIENCE_SECONDS: Final = 9.0
_COLOURS: Final = {OK: "32", WARNING: "33", PROBLEM: "31", NOT_CHECKED: "90"}
_DEFAULTS: Final = {
    "exporter": "http://127.0.0.1:10288",
    "prometheus": "http://127.0.0.1:9090",
    "alertmanager": "http://127.0.0.1:9093",
    "grafana": "http://127.0.0.1:3000",
}


def command(argv: list[str]) -> int:
    """Look at everything, and tell. Returns 0 if nothing is a problem, 1 if something is; usage errors exit with 2."""
    arguments = _parser().parse_args(argv)
    named = {name for name in _DEFAULTS if getattr(arguments, name)}
    urls = {name: getattr(arguments, name) or State.address(name, default) for name, default in _DEFAULTS.items()}
    where = Where(
        **urls,
        asked_for=frozenset(named),
        run_dir=(arguments.run_dir or rundir.own()).absolute(),
        python=arguments.python or shutil.which("python") or sys.executable,
    )
    findings = examine(where)
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.write(_text(findings))
    sys.stdout.flush()
    return 1 if any(finding.verdict == PROBLEM for finding in findings) else 0


def examine(where: Where, checks: dict[str, Check] = CHECKS, patience: float = PATIENCE_SECONDS) -> list[Finding]:
    """What all checks find, side by side; one that hangs is left behind after `patience` seconds."""
    found: dict[str, list[Finding]] = {name: [] for name in checks}

    def work(name: str, check: Check) -> None:
        try:
            for finding in check(where):
                found[name].append(finding)
        except Exception as error:
            found[name].append(not_checked(name, f"doctor failed at it: {error!r}", "please report this"))

    threads = {
        name: threading.Thread(target=work, args=(name, check), daemon=True) for name, check in checks.items()
    }  # fmt: skip
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + patience
    findings = []
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        findings += list(found[name])
        if thread.is_alive():
            what = f"no answer within {patience:.0f} s"
            findings.append(not_checked(name, what, "what it asks hangs; see its log, or dmesg"))
    return findings


def _text(findings: Sequence[Finding]) -> str:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines = []
    for each in findings:
        verdict = f"{each.verdict:<11}"
        if colour:
            verdict = f"\033[{_COLOURS[each.verdict]}m{verdict}\033[0m"
        lines.append(f"{verdict} {each.check}: {printable(each.what)}\n")
        if each.remedy:
            lines.append(f"{'':<11}   -> {printable(each.remedy)}\n")
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in _COLOURS}
    plural = "s" if counts[PROBLEM] > 1 else ""
    told = (f"{number} {verdict}{plural if verdict == PROBLEM else ''}" for verdict, number in counts.items() if number)
    return "".join(lines) + ", ".join(told) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainvitals doctor",
        description="Find what is wrong in a set-up, and say how to mend it. Changes nothing, and needs no root.",
        epilog="Exit code 0: nothing is a problem; 1: something is; 2: usage.",
    )
    for name, default in _DEFAULTS.items():
        parser.add_argument(
            f"--{name}",
            metavar="URL",
            type=_url,
            help=f"where it answers (default: that of your `trainvitals stack`, else {default})",
        )
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help=f"the run directory (default: ${rundir.ENVIRONMENT}, else your own)"
    )
    parser.add_argument("--python", metavar="FILE", help="the Python that you train with (default: python on PATH)")
    parser.add_argument("--json", action="store_true", help="tell it as JSON")
    return parser


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://127.0.0.1:9090")
    return text.rstrip("/")
