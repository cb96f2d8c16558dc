"""What would have made an ended run faster, or let it fit: the conditions of the alerts, by the whole run.

The numbers are those of prometheus/rules/settings.yml; a test holds them together. An alert looks at ten minutes of a
run that has settled; here all of it is known, so that a minute is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trainvitals.report_facts import Facts, Ranks

# By the names of the rules, without "threshold:trainvitals_".
THRESHOLDS: Final = {
    "iteration_known:iterations": 10,
    "data_starved:ratio": 0.4,
    "data_wait_notable:ratio": 0.3,
    "checkpoints_too_frequent:ratio": 0.1,
    "checkpoints_too_frequent:iterations": 500,
    "advice_memory_tight:ratio": 0.9,
    "advice_memory_roomy:ratio": 0.5,
    "advice_smallest_batch:count": 1,
    "advice_data_wait:ratio": 0.1,
    "advice_transfer:ratio": 0.05,
    "advice_find_unused:iterations": 1000,
}
AT_MOST: Final = 3
# Before that, what happens once (the first batch, compiling) is most of the time.
_SETTLED_SECONDS: Final = 60.0
# What a full card stands in the way of is worth more than any time: a run that fits, or a larger batch.
_WORTH_OF_ROOM: Final = 1.0
_WORTH_OF_FITTING: Final = 2.0


@dataclass(frozen=True)
class Advice:
    """One piece of advice. `alert` names the alert and so the runbook; `worth` is about the share of time to be won."""

    alert: str
    text: str
    worth: float


def advice(facts: Facts, ranks: Ranks) -> list[Advice]:
    """What applies to this run, the most valuable first, three at most."""
    found = [each for judge in _JUDGES for each in judge(facts, ranks)]
    return sorted(found, key=lambda each: -each.worth)[:AT_MOST]


def _settled(facts: Facts) -> bool:
    known = facts.progress.iterations > THRESHOLDS["iteration_known:iterations"]
    return known and facts.training_seconds >= _SETTLED_SECONDS


def _share(ranks: Ranks, phase: str) -> float:
    """The slowest rank sets the pace."""
    return max(ranks.phase_shares(phase).values(), default=0.0)


def _batch_size(ranks: Ranks) -> str:
    size = ranks.highest("dataloader_batch_size")
    return "" if size is None else f" at a batch size of {size:.0f}"


def _data(facts: Facts, ranks: Ranks) -> Iterator[Advice]:
    waiting, workers = _share(ranks, "data_wait"), ranks.highest("dataloader_workers")
    if not _settled(facts) or workers is None:
        return
    if workers == 0 and waiting > THRESHOLDS["advice_data_wait:ratio"]:
        yield Advice(
            "TrainingAdviceWorkers",
            f"Loading data took {waiting:.0%} of the time, with num_workers=0: set num_workers to 4 or more, with "
            "persistent_workers=True; up to as much time is saved.",
            waiting,
        )
    elif workers > 0 and waiting > THRESHOLDS["data_starved:ratio"]:
        yield Advice(
            "TrainingDataStarved",
            f"Waiting for data took {waiting:.0%} of the time, with {workers:.0f} workers: prepare features once "
            "before training, move the data to a local SSD, or use more workers where CPU cores idle.",
            waiting,
        )


def _pinned(facts: Facts, ranks: Ranks) -> Iterator[Advice]:
    copying = _share(ranks, "transfer")
    on_gpu = ranks.highest("run_gpu_info") == 1
    unpinned = ranks.highest("dataloader_pin_memory") == 0
    if _settled(facts) and on_gpu and unpinned and copying > THRESHOLDS["advice_transfer:ratio"]:
        yield Advice(
            "TrainingAdvicePinMemory",
            f"Copying batches to the GPU took {copying:.0%} of the time, with pin_memory=False: set pin_memory=True in "
            "the DataLoader, and copy by .to(device, non_blocking=True).",
            copying,
        )


def _memory_tight(facts: Facts, ranks: Ranks) -> Iterator[Advice]:
    used = max((share for gpu in facts.gpus if (share := gpu.used) is not None), default=0.0)
    failed = facts.trouble.cuda_ooms > 0
    if not failed and not (_settled(facts) and used > THRESHOLDS["advice_memory_tight:ratio"]):
        return
    how = "The GPU's memory did not suffice" if failed else f"PyTorch held {used:.0%} of the GPU's memory"
    worth = _WORTH_OF_FITTING if failed else _WORTH_OF_ROOM
    amp = ranks.highest("amp_enabled")
    if amp == 0:
        yield Advice(
            "TrainingAdviceAmp",
            f"{how}{_batch_size(ranks)}, without AMP: autocast takes 35 to 45 % less memory and "
            "trains 20 to 30 % faster.",
            worth,
        )
    batch = ranks.highest("dataloader_batch_size")
    smallest = batch is not None and batch <= THRESHOLDS["advice_smallest_batch:count"]
    if ranks.highest("gradient_checkpointing_enabled") == 0 and (amp == 1 or smallest):
        yield Advice(
            "TrainingAdviceGradientCheckpointing",
            f"{how}{_batch_size(ranks)}, and all activations are kept: gradient checkpointing takes about 40 % less "
            "memory for 15 to 20 % slower training; a smaller batch with accumulated gradients is the other way.",
            0.9 * worth,
        )


def _memory_roomy(facts: Facts, ranks: Ranks) -> Iterator[Advice]:
    shares = [share for gpu in facts.gpus if (share := gpu.used) is not None]
    waits = _share(ranks, "data_wait") >= THRESHOLDS["data_wait_notable:ratio"]
    if _settled(facts) and shares and not waits and max(shares) < THRESHOLDS["advice_memory_roomy:ratio"]:
        yield Advice(
            "TrainingAdviceBatchSize",
            f"PyTorch held {max(shares):.0%} of the GPU's memory at most{_batch_size(ranks)}: if the GPU was not busy "
            "all the time (the dashboard shows), double the batch size until memory is about 80 % full.",
            0.05,
        )


def _checkpoints(facts: Facts, ranks: Ranks) -> Iterator[Advice]:
    """By the rank that saves most: it saves and the others wait."""
    saving, seconds = ranks.of_each("checkpoint_seconds_total"), ranks.of_each("phase_seconds_total")
    share = max((saving[rank] / seconds[rank] for rank in saving if seconds.get(rank)), default=0.0)
    often = max(ranks.of_each("checkpoint_saves_total").values(), default=0) > 2
    interval = ranks.highest("checkpoint_last_interval_iterations")
    close = interval is not None and interval < THRESHOLDS["checkpoints_too_frequent:iterations"]
    if _settled(facts) and often and close and share > THRESHOLDS["checkpoints_too_frequent:ratio"]:
        yield Advice(
            "TrainingCheckpointsTooFrequent",
            f"Saving checkpoints took {share:.0%} of the time, the newest after {interval:.0f} iterations: save every "
            "500 to 1000 iterations, and keep the last three.",
            share,
        )


def _find_unused(facts: Facts, ranks: Ranks) -> Iterator[Advice]:
    looks, found = ranks.highest("ddp_find_unused_parameters") == 1, ranks.highest("ddp_unused_parameter_bytes")
    fewest = min(ranks.of_each("iterations_total").values(), default=0)
    if _settled(facts) and looks and found == 0 and fewest > THRESHOLDS["advice_find_unused:iterations"]:
        yield Advice(
            "TrainingAdviceFindUnusedParameters",
            f"find_unused_parameters=True found none in {fewest:,.0f} iterations: take it out, and each is spared a "
            "walk through the graph.",
            0.02,
        )


_JUDGES: Final[tuple[Callable[[Facts, Ranks], Iterator[Advice]], ...]] = (
    _data, _pinned, _memory_tight, _memory_roomy, _checkpoints, _find_unused,
)  # fmt: skip
