"""What counts as a floor of memory that rises with each step, and what does not."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from trainvitals.baselines import SteadyGrowth

MB = 1e6


def noise(step: int, spread: float) -> float:
    """The same for a step at all times."""
    return random.Random(step).gauss(0, spread)


def results(memory: Callable[[int], float], steps: int, every: int = 1) -> list[float]:
    """What is said at each value that is seen, from the first answer on."""
    growth = SteadyGrowth()
    said = [growth.add(step, memory(step)) for step in range(1, steps + 1, every)]
    return list(itertools.dropwhile(lambda value: value is None, said))  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "around",
    [
        lambda step: 0.0,
        lambda step: 300 * MB * (step % 7),  # batches of all lengths
        lambda step: 4000 * MB * (step > 2),  # the optimizer's states come with the first step
        lambda step: 1000 * MB * (step > 400),  # and one thing more in the middle
        lambda step: noise(step, 50 * MB),
    ],
    ids=["alone", "lengths", "start", "step", "noise"],
)
def test_a_leak_is_told_by_what_an_iteration_costs(around: Callable[[int], float], every: int) -> None:
    said = results(lambda step: 2000 * MB + 5 * MB * step + around(step), 2000, every)
    assert said[-1] == pytest.approx(5 * MB, rel=0.3)


@pytest.mark.parametrize(
    "memory",
    [
        lambda step: 2000 * MB,
        lambda step: 4000 * MB * (step > 2),
        lambda step: 1000 * MB * (step > 100),
        lambda step: 1000 * MB * (step > 700) + 500 * MB * (step > 100),
        lambda step: 300 * MB * (step % 7),
        lambda step: -1 * MB * step,
    ],
    ids=["even", "start", "step", "steps", "lengths", "falling"],
)
def test_what_is_no_leak_is_none_at_any_time(memory: Callable[[int], float]) -> None:
    assert set(results(memory, 3000)) == {0.0}


def test_a_saw_tooth_is_none_once_it_was_seen_to_fall_twice() -> None:
    said = results(lambda step: 10 * MB * (step % 200), 3000)
    assert set(said[500:]) == {0.0}


def test_a_warm_up_is_none_once_it_has_ended() -> None:
    said = results(lambda step: 5 * MB * min(step, 500), 1500)
    assert max(said) > 0
    assert set(said[620:]) == {0.0}


def test_a_warm_up_that_flattens_counts_less_and_less() -> None:
    said = results(lambda step: 4000 * MB * (1 - math.exp(-step / 100)), 1500)
    assert said[-1] < MB / 100 < max(said)


def test_noise_alone_never_looks_like_much() -> None:
    said = results(lambda step: noise(step, 100 * MB), 3000)
    assert max(said[500:]) < MB / 4


def test_nothing_is_said_before_enough_was_seen() -> None:
    growth = SteadyGrowth()
    assert {growth.add(step, step) for step in range(63)} == {None}
    assert growth.add(63, 63) == pytest.approx(1)
