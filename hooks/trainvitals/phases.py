"""How the wall time of training splits into phases, which add up to it."""

from __future__ import annotations

from collections.abc import Callable

from trainvitals import catalogue
from trainvitals.runfile import RunFileWriter

DATA_WAIT, TRANSFER, FORWARD, BACKWARD, OPTIMIZER, CHECKPOINT, OTHER = range(len(catalogue.PHASES))


class Phases:
    """The time since the first event, by phase. Times are those of perf_counter().

    What belongs to an iteration is known only later, at its first backward: until then it can be set aside.
    """

    def __init__(self) -> None:
        # when the newest event was; None before the first
        self.mark: float | None = None
        # seconds that the iteration under way has waited for data
        self.waited = 0.0
        # told of each phase that has just ended, by its number
        self.on_phase: Callable[[int], None] | None = None
        self._spent = [0.0] * len(catalogue.PHASES)
        self._kept = self._spent.copy()
        self._slots: list[int] = []

    def passed(self, now: float, phase: int) -> None:
        """The time since the last event belongs to this phase."""
        if self.mark is not None:
            self._spent[phase] += now - self.mark
            if phase == DATA_WAIT:
                self.waited += now - self.mark
        self.mark = now
        if self.on_phase is not None:
            self.on_phase(phase)

    def keep(self) -> None:
        """An iteration is over: what passed until now was training."""
        self._kept[:] = self._spent
        self.waited = 0.0

    def set_aside(self) -> None:
        """What came after the last iteration's end was evaluation, say; saving is still saving."""
        spent, kept = self._spent, self._kept
        saving = spent[CHECKPOINT]
        aside = sum(spent) - sum(kept) - (saving - kept[CHECKPOINT])
        spent[:] = kept
        spent[CHECKPOINT] = saving
        spent[OTHER] += aside
        self.waited = 0.0

    def armed(self, writer: RunFileWriter) -> None:
        """There is a run file to write to."""
        self._slots = [writer.slot("trainvitals_phase_seconds_total", phase=phase) for phase in catalogue.PHASES]

    def write(self, values: memoryview[float]) -> None:
        """Add what passed since the last time to the values in the run file."""
        for slot, seconds in zip(self._slots, self._spent, strict=True):
            values[slot] += seconds
        self._spent[:] = [0.0] * len(self._spent)
        self._kept[:] = self._spent
