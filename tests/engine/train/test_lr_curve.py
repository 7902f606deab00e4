"""What a sweep of learning rates suggests, on curves whose answer is known."""

import math

import numpy as np
import pytest

from engine.config import ConfigError
from engine.train.lr_curve import Sweep, has_diverged, rates_between, smooth, suggest
from engine.train.lr_range import Range, asked

RATES = rates_between(1e-6, 10.0, 100)


def made(best: float = 0.1, noise: float = 0.0, seed: int = 0) -> Sweep:
    """A loss that falls over two decades to its lowest at `best` and explodes behind it."""
    rng, losses = np.random.default_rng(seed), []
    for rate in RATES:
        at = math.log10(rate / best)
        loss = 2.3 - 2.0 / (1 + math.exp(-4 * (at + 1))) + (math.exp(6 * at) if at < 5 else math.inf)
        losses.append(loss + rng.normal(0, noise))
        if has_diverged(losses, len(RATES)):
            break
    return Sweep(RATES, tuple(losses))


def test_rates_are_evenly_spaced_in_their_logarithm():
    assert len(RATES) == 100
    assert (RATES[0], RATES[-1]) == pytest.approx((1e-6, 10.0))
    assert np.diff(np.log(RATES)) == pytest.approx(np.full(99, math.log(1e7) / 99))


def test_smoothing_is_corrected_for_its_beginning():
    assert smooth(np.array([3.0, 3.0, 3.0]), 0.9) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth(np.array([1.0, 2.0]), 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 2) / 0.75])


@pytest.mark.parametrize("best", [1e-3, 0.03, 1.0])
def test_the_suggestion_lies_where_the_loss_falls(best):
    sweep = made(best)
    assert sweep.diverged
    assert best / 30 < sweep.suggestion < best


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_it_does_not_depend_on_the_losses_unit(scale):
    sweep = made()
    assert Sweep(RATES, tuple(scale * loss for loss in sweep.losses)).suggestion == sweep.suggestion


def test_a_loss_that_never_falls_suggests_nothing():
    flat = Sweep(RATES, tuple(2.3 + 0.01 * step for step in range(100)))
    assert flat.suggestion is None
    assert suggest([flat, flat, flat]).rate is None


def test_a_network_that_does_not_fall_is_given_a_third_of_what_it_bears_and_is_not_sure():
    """As MobileNetV1 at a quarter of its width: 100 steps move it at no rate."""
    losses = [2.3 + (0.0 if rate < 0.1 else (rate / 0.1) ** 2 - 1) for rate in RATES]
    end = next(step for step in range(5, 100) if has_diverged(losses[:step], 100))
    found = suggest([Sweep(RATES, tuple(losses[:end]))] * 3)
    assert found.rate == pytest.approx(0.1 / 3, rel=0.5)
    assert (found.fell, found.sureness) == (False, "unsure")


def test_a_loss_that_is_not_a_number_ends_the_sweep_there():
    assert has_diverged([2.3, 2.0, math.nan], 100)
    assert has_diverged([2.3, 2.0, math.inf], 100)
    assert not has_diverged([2.3, 2.0], 100)
    losses = (*made().losses[:60], math.nan)
    assert Sweep(RATES, losses).diverged
    assert len(Sweep(RATES, losses).smoothed) == 60
    assert Sweep(RATES, (math.nan,)).suggestion is None


def test_how_sure_it_is_is_the_spread_of_the_repetitions():
    alike = suggest([made(noise=0.01, seed=seed) for seed in range(3)])
    assert alike.sureness == "steady" and len(alike.each) == 3 and alike.diverged
    assert min(alike.each) * 0.999 <= alike.rate <= max(alike.each) * 1.001
    apart = suggest([made(0.001), made(0.1), made(10.0)])
    assert apart.sureness == "unsure"
    assert apart.factor == max(apart.each) / min(apart.each)


def test_a_range_on_the_command_line():
    assert asked(["--arch", "x", "--find-lr"]) == (["--arch", "x"], Range())
    assert asked(["--find-lr", "--arch", "x"]) == (["--arch", "x"], Range())
    assert asked(["--find-lr", "1e-4:1", "--lr", "1"]) == (["--lr", "1"], Range(1e-4, 1.0))
    assert asked(["--find-lr=1e-4:1:50"]) == ([], Range(1e-4, 1.0, 50))
    assert asked(["--lr", "1"]) == (["--lr", "1"], None)


@pytest.mark.parametrize(
    "text", ["1", "1:0.1", "0:1", "a:b", "1e-4:1:5", "1e-4:nan", "1e-4:1:50:2", "-1:1", "1e-4:inf"]
)
def test_a_range_that_cannot_be_meant_is_refused(text):
    with pytest.raises(ConfigError, match="LOW:HIGH"):
        asked([f"--find-lr={text}"])
