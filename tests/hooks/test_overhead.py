"""The hooks keep to their share of an iteration: what is too dear for each step is sampled, and a metric says so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launcher
from tests.hooks.warm import Warm, warm

STEPS = """
import time, torch
p = torch.nn.Parameter(torch.ones(3)); o = torch.optim.SGD([p], lr=0.0)
def step(factor=1.0, seconds=0.0):
    o.zero_grad(); (p.sum() * factor).backward(); o.step(); time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warm(tmp_path_factory.mktemp("default")) as process:
        yield process


@pytest.fixture(scope="module")
def generous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Where the hooks may take as long as the training."""
    with warm(tmp_path_factory.mktemp("generous"), TRAINVITALS_OVERHEAD="1") as process:
        yield process


def train(process: Warm | Launcher, text: str) -> RunFile:
    return process.python(STEPS + text).rank


def measured(rank: RunFile) -> float | None:
    return rank.value("trainvitals_gradient_norm_measured_steps_total", optimizer="0")


def interval(rank: RunFile) -> float | None:
    return rank.value("trainvitals_gradient_norm_interval_steps", optimizer="0")


UNTIL_SETTLED = "end = time.time() + 3\nwhile time.time() < end: step()\n"


def test_steps_too_short_for_the_gradient_norm_are_sampled(process: Warm) -> None:
    rank = train(process, UNTIL_SETTLED)
    steps, of_one = rank.value("trainvitals_optimizer_steps_total", optimizer="0"), interval(rank)
    assert of_one is not None
    assert steps is not None
    assert 1 < of_one <= 64
    assert steps / 64 < (measured(rank) or 0) < steps / 2
    assert rank.value("trainvitals_hook_share_limit_ratio") == 0.01


def test_the_loss_of_every_step_is_seen_nevertheless(process: Warm) -> None:
    rank = train(process, UNTIL_SETTLED + "for i in range(200): step(5000.0 if i == 130 else 1.0)\n")
    assert (interval(rank) or 0) > 1
    assert rank.value("trainvitals_loss_anomalies_total", optimizer="0", kind="spike") == 1


def test_longer_steps_are_all_measured(launcher: Launcher) -> None:
    launcher.environment["TRAINVITALS_OVERHEAD"] = "0.05"  # the machine may be busy
    rank = train(launcher, "for _ in range(120): step(seconds=0.03)")
    assert (interval(rank), measured(rank)) == (1, 120)


def test_whoever_grants_more_sees_every_step(generous: Warm) -> None:
    rank = train(generous, UNTIL_SETTLED)
    assert interval(rank) == 1
    assert measured(rank) == rank.value("trainvitals_optimizer_steps_total", optimizer="0")
    assert rank.value("trainvitals_hook_share_limit_ratio") == 1


def test_a_norm_that_varies_widely_by_nature_is_no_explosion(generous: Warm) -> None:
    # powers of 2 up to 4096: over ten times the median, but not far out
    text = "for i in range(600): step(2.0 ** (i * 7 % 13))\n"
    rank = train(generous, text)
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="explosion") == 0


def test_an_episode_lasts_until_the_norm_is_well_back(generous: Warm) -> None:
    # once over 10 times the median, 6 times is still part of it; later it is not
    factors = "[1.0] * 100 + [20.0, 6.0, 6.0, 1.0] + [1.0] * 20 + [6.0] * 5"
    rank = train(generous, f"for f in {factors}: step(f)\n")
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="explosion") == 3


@pytest.mark.parametrize(
    ("factors", "explosions"),
    [
        ("[1.0] * 100 + [20.0] * 9 + [1.0] * 20", 0),
        ("[1.0] * 100 + ([20.0] * 9 + [1.0]) * 8", 0),
        ("[1.0] * 100 + [20.0] * 60 + [1.0] * 20", 1),
        ("[1.0] * 100 + ([20.0] * 10 + [1.0]) * 2 + [20.0, 40.0, 6.0, 80.0] * 5", 3),
        ("[1.0] * 100 + [20.0] * 5 + [math.nan] + [20.0] * 9", 0),
        ("[1.0] * 30 + [20.0] * 20", 0),  # the usual is not known yet
        ("[1.0] * 100 + [1e-5] * 20", 0),
    ],
)
def test_an_explosion_that_lasts_is_counted_once(generous: Warm, factors: str, explosions: int) -> None:
    rank = train(generous, f"import math\nfor f in {factors}: step(f)\n")
    assert rank.value("trainvitals_gradient_explosions_total", optimizer="0") == explosions


def test_a_step_with_an_odd_loss_is_measured_out_of_turn(process: Warm) -> None:
    text = "for i in range(400): step(5000.0 if i % 100 == 53 else 1.0)\n"
    rank = train(process, UNTIL_SETTLED + text)
    assert (interval(rank) or 0) > 8
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="explosion") == 4


def test_skipped_steps_of_a_fused_optimizer_are_told_from_made_ones_without_a_norm(process: Warm) -> None:
    # the square root at 0: a usual loss with gradients that are not finite
    result = process.python("""
import json, time, torch
p = torch.nn.Parameter(torch.ones(3)); o = torch.optim.AdamW([p], lr=0.0, fused=True)
scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
end, made, skipped = time.time() + 3, 0, 0
while time.time() < end:
    odd = (made + skipped) % 100 == 77
    o.zero_grad(); loss = (p - p.detach()).sqrt().sum() if odd else (p - 1).square().sum()
    scaler.scale(loss).backward(); scaler.step(o); scaler.update(4.0)
    made += not odd; skipped += odd
print(json.dumps([made, skipped]))
""")
    made, skipped = json.loads(result.stdout)
    assert (interval(result.rank) or 0) > 8
    assert result.rank.value("trainvitals_optimizer_steps_total", optimizer="0") == made
    assert result.rank.value("trainvitals_amp_skipped_steps_total", optimizer="0") == skipped
