"""Was the fault caught, was it named right, and was anything else said? And the table of it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.faultbench.observations import Alert
from benchmarks.faultbench.scenarios import HOUR, Scenario

# Two scrape intervals and an evaluation, in seconds.
AT_ONCE: Final = 15.0


@dataclass(frozen=True)
class Verdict:
    """How a scenario went. `seconds` from the onset to firing and `notified` to the webhook, both at real scale.

    `watched` is for how long it was watched at real scale, in seconds.
    """

    scenario: Scenario
    fired: bool
    cause: bool
    seconds: float | None
    notified: float | None
    wrong: tuple[str, ...]
    watched: float
    trouble: str = ""

    @property
    def late(self) -> bool:
        """Whether a fault that has to be notified at once was not."""
        return self.scenario.immediate and self.fired and (self.notified is None or self.notified > AT_ONCE)

    @property
    def good(self) -> bool:
        """Nothing missed, nothing misnamed, nothing alleged, nothing late."""
        right = self.scenario.healthy or (self.fired and self.cause)
        return right and not self.wrong and not self.late and not self.trouble


def judge(
    scenario: Scenario, alerts: Sequence[Alert], onset: float | None, watched: float, trouble: str = ""
) -> Verdict:
    """`alerts` are those that fired for this run, `onset` the Unix time at which the fault began."""
    expected = [alert for alert in alerts if alert.name == scenario.expect]
    good = sorted((alert for alert in expected if alert.matches(scenario.says)), key=lambda alert: alert.first_seen)
    seconds = notified = None
    if expected and onset is not None:
        first = (good or expected)[0]
        seconds = (first.first_seen - onset) * scenario.factor
        notified = (first.notified - onset) * scenario.factor if first.notified is not None else None
    early = {alert.name for alert in expected if onset is None or alert.first_seen < onset}
    others = {alert.name for alert in alerts if alert.above_info} - {scenario.expect, *scenario.allowed}
    return Verdict(
        scenario, bool(expected), bool(good), seconds, notified, tuple(sorted(others | early)),
        watched * scenario.factor, trouble,
    )  # fmt: skip


@dataclass(frozen=True)
class Totals:
    """Over all scenarios. An alert is right if its fault was played and its cause named; all others above info are
    false. `healthy_hours` are of real scale.
    """

    faults: int
    caught: int
    named: int
    wrong: int
    false_alarms: int
    healthy_hours: float

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Totals:
        """Count."""
        faults = [verdict for verdict in verdicts if not verdict.scenario.healthy]
        healthy = [verdict for verdict in verdicts if verdict.scenario.healthy]
        return cls(
            faults=len(faults),
            caught=sum(verdict.fired for verdict in faults),
            named=sum(verdict.cause for verdict in faults),
            wrong=sum(len(verdict.wrong) for verdict in verdicts),
            false_alarms=sum(len(verdict.wrong) for verdict in healthy),
            healthy_hours=sum(verdict.watched for verdict in healthy) / HOUR,
        )

    def lines(self) -> list[str]:
        """For people, in Markdown."""
        told = self.named + (self.caught - self.named) + self.wrong
        rate = self.false_alarms / self.healthy_hours if self.healthy_hours else 0.0
        return [
            f"- recall: {self.caught} of {self.faults} faults caught, {self.named} with the right cause"
            + (f" ({self.named / self.faults:.0%})" if self.faults else ""),
            f"- precision: {self.named} of {told} alerts above info were right"
            + (f" ({self.named / told:.0%})" if told else ""),
            f"- false alarms: {self.false_alarms} in {self.healthy_hours:.1f} healthy run-hours ({rate:.2f} an hour)",
        ]


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """A row for each scenario, in Markdown."""
    rows = [
        "| fault | shape | expected | fired | cause | onset to firing | to the webhook | played | wrong alerts |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for verdict in verdicts:
        scenario = verdict.scenario
        healthy = scenario.healthy
        rows.append(
            f"| {scenario.name} | {scenario.shape} | {scenario.expect or 'nothing'} "
            f"| {'' if healthy else 'yes' if verdict.fired else '**no**'} "
            f"| {'' if healthy else 'right' if verdict.cause else '**wrong**' if verdict.fired else ''} "
            f"| {_seconds(verdict.seconds)} | {_seconds(verdict.notified)}{' **late**' if verdict.late else ''} "
            f"| x{scenario.factor:g}, {verdict.watched / 60:.0f} min "
            f"| {', '.join(verdict.wrong)}{verdict.trouble and f'**{verdict.trouble}**'} |"
        )
    return rows


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"
