"""The report as a person reads it: one screen of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from trainvitals.report_advice import Advice
from trainvitals.report_facts import DeviceMemory, Facts

WIDEST: Final = 100
_NARROWEST: Final = 60
_LABEL: Final = 11  # columns, the two in front of it included not
_BAR: Final = 24
_MOST_PHASES: Final = 4
_MOST_OPTIMIZERS: Final = 2
_BOLD, _RED, _YELLOW, _PLAIN = "\033[1m", "\033[31m", "\033[33m", "\033[0m"


def render(facts: Facts, advice: Sequence[Advice], details: Sequence[str], *, width: int, colour: bool) -> str:
    """The report, each line with its end. `details` are where to look further; `width` is that of the terminal."""
    width = min(WIDEST, max(_NARROWEST, width))
    good = facts.ending.state == "finished"
    lines = _folded(f"trainvitals: run {facts.run} {_how_it_ended(facts)}", width, "  ")
    if colour:
        lines[0] = f"{_BOLD if good else _BOLD + _RED}{lines[0]}{_PLAIN}"
    for label, texts in _sections(facts, advice, details):
        for number, text in enumerate(texts):
            loud = colour and label in ("anomalies", "advice")
            lines += _labelled(label if number == 0 else "", text, width, _YELLOW if loud else "")
    return "".join(line + "\n" for line in lines)


def _sections(facts: Facts, advice: Sequence[Advice], details: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    yield "progress", [_progress(facts)]
    yield "time", list(_time(facts))
    yield "last loss", list(_losses(facts))
    yield "memory", list(_memory(facts))
    yield "anomalies", ["; ".join(_anomalies(facts)) or "none"]
    yield "advice", [each.text for each in advice]
    yield "details", list(details)


def _how_it_ended(facts: Facts) -> str:
    end, after = facts.ending, f"after {duration(facts.seconds)}"
    because = f" ({end.exception})" if end.exception else ""
    if end.state == "finished":
        how = f"finished {after}"
    elif end.state == "killed":
        how = f"was ended by {end.signal or 'a signal'} {after}"
    elif end.state == "out_of_memory" and end.signal:
        how = f"was ended {after}: the kernel killed a process of it for lack of memory"
    elif end.state == "out_of_memory":
        how = f"ran out of memory {after}{because}"
    else:
        how = f"failed {after}{because}"
    if end.exit_code and end.state != "killed":
        how += f", exit code {end.exit_code}"
    if end.silent_ranks and end.state != "finished":
        how += f"; ended without a word, as when killed: {_numbers('rank', end.silent_ranks)}"
    if end.running_ranks:
        how += f"; still running: {_numbers('rank', end.running_ranks)}"
    return how


def _progress(facts: Facts) -> str:
    progress = facts.progress
    parts = [_count(progress.iterations, "iteration")]
    if progress.epochs:
        parts.append(_count(progress.epochs, "epoch"))
    if progress.iterations_per_second is not None:
        last = progress.last_iterations_per_second
        end = "" if last is None else f" ({_rate(last)} at the end)"
        parts.append(f"{_rate(progress.iterations_per_second)} it/s{end}")
    if progress.world_size and progress.world_size > progress.ranks:
        parts.append(f"{progress.ranks} of {progress.world_size} ranks seen here")
    elif progress.ranks > 1:
        parts.append(f"{progress.ranks} ranks")
    return ", ".join(parts)


def _time(facts: Facts) -> Iterator[str]:
    """The largest phases, and what was before the first batch and after the last."""
    largest = sorted(facts.phases, key=lambda phase: -phase.seconds)
    rows = [(phase.phase.replace("_", " "), phase.seconds, phase.share) for phase in largest[:_MOST_PHASES]]
    rest = largest[_MOST_PHASES:]
    if rest:
        names = ", ".join(phase.phase.replace("_", " ") for phase in rest)
        rows.append((names, sum(phase.seconds for phase in rest), sum(phase.share for phase in rest)))
    for name, seconds, share in rows:
        bar = "#" * round(_BAR * share)
        yield f"{name:<22} {share:>6.1%}  {duration(seconds):>12}  {bar}".rstrip()
    yield f"{'outside training':<22} {'':>6}  {duration(facts.outside_training_seconds):>12}"


def _losses(facts: Facts) -> Iterator[str]:
    several = len(facts.optimizers) > 1
    texts = [
        f"{each.loss:.4g} ({each.name}{f' {each.optimizer}' if several else ''}, {_count(each.steps, 'step')})"
        for each in facts.optimizers
        if each.loss is not None
    ]
    shown, more = texts[:_MOST_OPTIMIZERS], len(texts) - _MOST_OPTIMIZERS
    if shown:
        yield "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _memory(facts: Facts) -> Iterator[str]:
    if facts.gpus:
        yield _gpu(max(facts.gpus, key=lambda gpu: gpu.used or gpu.peak_bytes), len(facts.gpus), facts.progress.ranks)
    if facts.host_largest_process_bytes is not None:
        yield f"host: {size(facts.host_largest_process_bytes)} at most in the largest process"


def _gpu(gpu: DeviceMemory, devices: int, ranks: int) -> str:
    which = f"GPU {gpu.device}" + (f" of rank {gpu.rank}" if ranks > 1 else "")
    fullest = f", the fullest of {devices}" if devices > 1 else ""
    of = "" if gpu.total_bytes is None else f" of {size(gpu.total_bytes)}"
    return f"{which}{fullest}: tensors {size(gpu.peak_bytes)}{of} at most; held {size(gpu.reserved_bytes)}"


_NAMES: Final = {
    ("loss", "spike"): "loss spike",
    ("loss", "nonfinite"): "non-finite loss",
    ("gradient", "explosion"): "exploded gradient",
    ("gradient", "vanishing"): "vanished gradient",
    ("gradient", "nonfinite"): "non-finite gradient",
}


def _anomalies(facts: Facts) -> Iterator[str]:
    for (of, kind), name in _NAMES.items():
        found = [each for each in facts.anomalies if (each.of, each.kind) == (of, kind)]
        if found:
            which = f" ({_numbers('optimizer', [e.optimizer for e in found])})" if len(facts.optimizers) > 1 else ""
            yield f"{name} at {_count(sum(each.steps for each in found), 'step')}{which}"
    trouble = facts.trouble
    if trouble.amp_skipped_steps:
        yield f"AMP skipped {_count(trouble.amp_skipped_steps, 'step')}"
    if trouble.cuda_ooms:
        asked = trouble.cuda_oom_requested_bytes
        yield f"{_count(trouble.cuda_ooms, 'failed GPU allocation')}" + (f" (of {size(asked)})" if asked else "")
    if trouble.series_dropped:
        yield f"{trouble.series_dropped:,} series not recorded"
    if trouble.hook_errors:
        errors = _count(sum(trouble.hook_errors.values()), "error")
        yield f"{errors} of our own hooks ({', '.join(trouble.hook_errors)})"


def duration(seconds: float) -> str:
    """A time as people say it, with two units at most."""
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, unit, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {smaller}"
    return f"{whole} s"


def size(number: float) -> str:
    """Bytes with a unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:.0f} B"


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _numbers(what: str, numbers: Sequence[object]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8]) + (" and more" if len(numbers) > 8 else "")
    return f"{what}{'' if len(numbers) == 1 else 's'} {shown}"


def _labelled(label: str, text: str, width: int, colour: str) -> list[str]:
    indent = " " * (2 + _LABEL)
    lines = _folded(text, width, indent, first=f"  {label:<{_LABEL}}")
    return [f"{colour}{line}{_PLAIN}" for line in lines] if colour else lines


def _folded(text: str, width: int, indent: str, first: str = "") -> list[str]:
    """In lines of this width. What a terminal would act on is left out: names come from the script."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return textwrap.wrap(
        clean, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False,
        drop_whitespace=True, replace_whitespace=False,
    ) or [first.rstrip()]  # fmt: skip
