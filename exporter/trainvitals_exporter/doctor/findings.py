"""What a check found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"
NOT_CHECKED: Final = "not checked"


@dataclass(frozen=True)
class Finding:
    """The verdict on one `check`: what is the case, and what to do about it ("" where nothing is to be done)."""

    check: str
    verdict: str
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Where:
    """What is looked at. URLs are without a slash at the end; `asked_for` are those that the user named."""

    exporter: str
    prometheus: str
    alertmanager: str
    grafana: str
    asked_for: frozenset[str]
    run_dir: Path
    python: str


Check: TypeAlias = "Callable[[Where], Iterator[Finding]]"


def ok(check: str, what: str) -> Finding:
    """It is as it should be."""
    return Finding(check, OK, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    """It may be meant so; monitoring works, in part."""
    return Finding(check, WARNING, what, remedy)


def problem(check: str, what: str, remedy: str) -> Finding:
    """Something that monitoring needs does not work."""
    return Finding(check, PROBLEM, what, remedy)


def not_checked(check: str, why: str, remedy: str = "") -> Finding:
    """It could not be looked at, or there is nothing to look at."""
    return Finding(check, NOT_CHECKED, why, remedy)
