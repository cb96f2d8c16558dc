"""``make faultbench``: plays faults and healthy runs to the whole stack, and tells what it said of them.

Exits with 1 when a fault was missed or misnamed, or a healthy run raised an alert above info.
"""

from __future__ import annotations

import argparse
import itertools
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.faultbench import judgement, scenarios
from benchmarks.faultbench.judgement import Totals, Verdict
from benchmarks.faultbench.play import Ward, work_folder
from benchmarks.faultbench.scenarios import Scenario
from examples.demo.programs import DemoError

# Share of evaluations that may be missed before results say more of the machine than of the rules.
TOO_BUSY: Final = 0.02
BUSY: Final = "the machine is too busy for this factor, so do not trust these results; try --jobs 6 or less"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="REGEX", help="scenarios whose names match; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the scenarios and what they expect")
    parser.add_argument("--factor", type=float, help="play at this compression instead of each scenario's own")
    parser.add_argument("--jobs", type=int, default=12, help="small runs at once (default 12, for two cores)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep logs and data there")
    options = parser.parse_args()
    chosen = [each for each in scenarios.ALL if _wanted(each, options.only)]
    if options.factor:
        chosen = [replace(each, factor=options.factor) for each in chosen if each.factor != 1]
    if options.list:
        for each in chosen:
            print(f"{each.name:34} {each.expect or 'nothing':36} x{each.factor:g}")
        return 0
    # Also where a shell started this in the background, which ignores the first: what is started here inherits that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        verdicts, notes = _play(chosen, options.jobs, options.work)
    except DemoError as error:
        print(f"faultbench: {error}", file=sys.stderr)
        return 1
    text = "\n".join([*judgement.table(verdicts), "", *Totals.of(verdicts).lines(), *notes])
    print(f"\n{text}")
    if options.write:
        options.write.write_text(_page(text, options.only))
    return 0 if all(verdict.good for verdict in verdicts) else 1


def _wanted(scenario: Scenario, patterns: list[str] | None) -> bool:
    return patterns is None or any(re.search(pattern, scenario.name) for pattern in patterns)


def _play(chosen: list[Scenario], jobs: int, keep: Path | None) -> tuple[list[Verdict], list[str]]:
    """Those of one factor share a stack; those that reach beyond their run have one of their own."""
    verdicts, notes = [], []
    together = sorted((each for each in chosen if not each.alone), key=lambda each: each.factor)
    wards = [list(group) for _, group in itertools.groupby(together, key=lambda each: each.factor)]
    wards += [[each] for each in chosen if each.alone]
    with work_folder(keep) as work:
        for number, group in enumerate(wards):
            folder = work / f"stack-{number}"
            folder.mkdir()
            # The longest go first, so that they do not run alone in the end.
            group.sort(key=lambda each: -(each.length if each.healthy else each.onset + each.patience))
            with Ward(folder, group[0].factor, group[0].host_gib) as ward:
                for note in ward.notes:
                    print(f"compressed {group[0].factor:g} times: {note}")
                for verdict in ward.play(group, jobs):
                    verdicts.append(verdict)
                    _tell(verdict)
                missed, evaluations = ward.observer.missed()
                if missed > TOO_BUSY * evaluations:
                    notes.append(f"- **Prometheus missed {missed:.0f} of {evaluations:.0f} evaluations: {BUSY}**")
                for alert in ward.unclaimed():
                    print(f"besides: {alert.name} {alert.labels}: {alert.descriptions[:1]}")
    return sorted(verdicts, key=lambda verdict: chosen.index(verdict.scenario)), notes


def _tell(verdict: Verdict) -> None:
    told = "good" if verdict.good else "BAD"
    when = "" if verdict.seconds is None else f" after {verdict.seconds:.0f} s"
    fired = f"{verdict.scenario.expect}{when}" if verdict.fired else "nothing"
    cause = "" if verdict.cause or not verdict.fired else " with another cause"
    late = "; told late" if verdict.late else ""
    more = f"; wrong: {', '.join(verdict.wrong)}" if verdict.wrong else ""
    print(f"{told:5}{verdict.scenario.name}: {fired}{cause}{late}{more} {verdict.trouble}", flush=True)


def _page(text: str, only: list[str] | None) -> str:
    explained = "Written by `make faultbench`; [what is played, and how to read this](faultbench.md)."
    part = f"\n\nA part of it: `{' '.join(f'--only {pattern}' for pattern in only)}`." if only else ""
    return f"# What the alerts caught\n\n{explained}{part}\n\n{text}\n"


if __name__ == "__main__":
    sys.exit(main())
