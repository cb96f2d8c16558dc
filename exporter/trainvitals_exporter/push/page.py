"""The exporter's page as series and values: what is pushed is what would be scraped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from trainvitals.catalogue import FINAL_STATES

NAME: Final = "__name__"
_STATE: Final = "trainvitals_run_state{"
_START: Final = "trainvitals_run_start_timestamp_seconds{"


def values(page: bytes) -> dict[str, float]:
    """Each series, as the page spells it, and its value."""
    lines = page.decode().split("\n")
    split = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {series: float(value) for series, _, value in split}


def labels(series: str) -> dict[str, str]:
    """The labels of a series, its name among them as `NAME`."""
    (family,) = text_string_to_metric_families(f"{series} 0\n")
    (sample,) = family.samples
    return {NAME: sample.name, **sample.labels}


def run_states(series: Mapping[str, float]) -> dict[str, str]:
    """The state of each run on the page."""
    told = [labels(each) for each, value in series.items() if value == 1 and each.startswith(_STATE)]
    return {each["run"]: each["state"] for each in told}


def ended_badly(states: Mapping[str, str]) -> set[str]:
    """The runs that somebody should be told about."""
    return {run for run, state in states.items() if state in FINAL_STATES and state != "finished"}


class RunsWatch:
    """Notices that the runs are over. Those that had ended before `began`, in Unix time, are none of its business."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._seen: set[str] = set()

    def over(self, series: Mapping[str, float]) -> bool:
        """Whether there was at least one run and none is left that goes on."""
        states = run_states(series)
        going_on = {run for run, state in states.items() if state not in FINAL_STATES}
        self._seen |= going_on | set(self._started_since(series.items()))
        return bool(self._seen) and not going_on

    def _started_since(self, series: Iterable[tuple[str, float]]) -> Iterable[str]:
        # A run can begin and end between two looks.
        return (labels(each)["run"] for each, value in series if each.startswith(_START) and value >= self._began)
