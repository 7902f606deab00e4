"""The measuring itself: turns, medians, intervals, and that a contender against itself comes out equal."""

import math
import random
import time

import pytest
import torch

from engine.bench.instrument import measure
from engine.bench.instrument.measure import Comparison, Steps, estimate, fair_settings, interleave, processor_ratio
from engine.bench.instrument.sides import Side, contender


def test_contenders_take_turns_and_the_warmup_is_left_out():
    calls = []

    def contender_of(name: str, rate: float):
        def run() -> float:
            calls.append(name)
            return rate * len(calls)

        return run

    result = interleave({"a": contender_of("a", 2.0), "b": contender_of("b", 1.0)}, rounds=3, warmup=1)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert result.rates == {"a": [8.0, 10.0, 16.0], "b": [3.0, 6.0, 7.0]}
    ratio = result.as_dict()["ratio"]["a / b"]
    assert (ratio["median"], ratio["low"], ratio["high"]) == (2.2857, 1.6667, 2.6667)


def test_three_contenders_follow_each_other_in_every_order():
    calls = []
    names = ["a", "b", "c"]
    interleave({name: lambda name=name: calls.append(name) or 1.0 for name in names}, rounds=3, warmup=0)
    assert calls == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    speed = iter([100, 100, 50, 50, 10, 10, 5, 5])
    result = interleave({"a": lambda: 3.0 * next(speed), "b": lambda: 2.0 * next(speed)}, rounds=4, warmup=0)
    assert result.ratios("b") == pytest.approx([1.5] * 4)


def test_intervals_are_those_of_the_sign_test():
    """Order statistics and coverages from the binomial distribution: n = 10 gives the 2nd and 9th, n = 15 the 4th."""
    few = estimate([3.0, 1.0, 2.0, 4.0])
    assert (few.median, few.low, few.high, few.coverage) == (2.5, 1.0, 4.0, 0.875)
    ten = estimate(list(range(1, 11)))
    assert (ten.low, ten.high) == (2, 9) and ten.coverage == pytest.approx(1 - 2 * 11 / 1024)
    fifteen = estimate(list(range(1, 16)))
    assert (fifteen.low, fifteen.median, fifteen.high) == (4, 8, 12)
    assert fifteen.coverage == pytest.approx(1 - 2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    with pytest.raises(ValueError, match="no rounds"):
        estimate([])


def test_the_interval_holds_the_true_median_as_often_as_it_says():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        found = estimate([draw.expovariate(1.0) for _ in range(9)])
        held += found.low <= math.log(2) <= found.high
    assert found.coverage == pytest.approx(1 - 2 * 10 / 512)
    assert abs(held / 2000 - found.coverage) < 0.012  # 2.8 standard deviations


def test_a_contender_that_fails_leaves_the_others():
    turns = iter(range(10))

    def fails() -> float:
        if next(turns) == 2:
            raise RuntimeError("CUDA out of memory\nlong tail")
        return 1.0

    result = interleave({"ours": lambda: 2.0, "broken": fails, "peer": lambda: 1.0}, rounds=4)
    assert result.errors == {"broken": "RuntimeError: CUDA out of memory"}
    assert set(result.rates) == {"ours", "peer"} and len(result.rates["peer"]) == 4
    assert set(result.as_dict()["ratio"]) == {"ours / peer"}


def test_where_ours_fails_the_peers_are_still_there():
    def fails() -> float:
        raise MemoryError

    result = interleave({"ours": fails, "peer": lambda: 1.0}, rounds=3).as_dict()
    assert result["median"] == {"peer": 1.0} and result["ratio"] == {} and result["errors"] == {"ours": "MemoryError: "}


def test_a_deadline_ends_after_three_rounds():
    result = interleave({"a": lambda: 1.0, "b": lambda: 1.0}, rounds=50, deadline=time.monotonic() - 1)
    assert len(result.rates["a"]) == 3


def test_a_tolerance_ends_when_the_ratio_is_known():
    assert len(interleave({"a": lambda: 1.0, "b": lambda: 1.0}, rounds=50, tolerance=0.01).rates["a"]) == 9
    draw = random.Random(0)
    noisy = interleave({"a": lambda: draw.uniform(1, 2), "b": lambda: 1.0}, rounds=20, tolerance=0.01)
    assert len(noisy.rates["a"]) == 20


class Clock:
    """Stands in for the clocks: steps take what they say, however busy the machine is."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.processor

    monotonic = perf_counter

    def pass_by(self, seconds: float, busy: bool = True) -> None:
        self.wall += seconds
        self.processor += seconds * busy


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


def test_steps_warm_up_choose_their_turn_and_rotate_inputs(clock):
    numbers = []

    def step(number: int) -> None:
        numbers.append(number)
        clock.pass_by(0.01)

    joules = iter(range(0, 100, 5))
    steps = Steps(step, 4, torch.device("cpu"), seconds=0.05, warmup=2, energy=lambda: float(next(joules)))
    rate = steps()
    assert numbers == list(range(3 + 5)) and steps.facts()["steps_per_turn"] == 5
    assert rate == pytest.approx(4 / 0.01)
    assert steps.first_step_seconds == pytest.approx(0.01) and steps.peak_bytes is None
    assert steps.joules == 5.0 and steps.items_measured == 4 * steps.facts()["steps_per_turn"]


def test_a_turn_is_its_median_step(clock):
    """One step of five that another program interrupts does not count."""
    lengths = iter([0.0] * 2 + [0.01, 0.01, 0.2, 0.01, 0.01])
    steps = Steps(lambda number: clock.pass_by(next(lengths)), 1, torch.device("cpu"), warmup=1)
    steps._start()
    steps._steps = 5
    assert steps() == pytest.approx(1 / 0.01)


def test_waiting_is_not_processor_time(clock):
    def busy(number: int) -> None:
        clock.pass_by(0.005)

    def waits(number: int) -> None:
        busy(number)
        clock.pass_by(0.04, busy=False)

    sides = {name: Steps(step, 1, torch.device("cpu"), 0.02, warmup=1) for name, step in (("a", busy), ("b", waits))}
    wall = interleave(dict(sides), 4).ratio("b").median
    assert wall == pytest.approx(9) and processor_ratio(sides["a"], sides["b"]).median == pytest.approx(1)


def test_settings_are_given_back():
    before = torch.backends.cudnn.benchmark
    with fair_settings():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


def test_the_first_contender_is_the_one_compared():
    assert Comparison({"a": [2.0], "b": [1.0]}).as_dict()["ratio"] == {
        "a / b": {"median": 2.0, "low": 2.0, "high": 2.0, "n": 1, "coverage": 0.0}
    }


@pytest.mark.slow
def test_a_network_against_itself_is_equal():
    """In processor time where the machine is busy: what another program takes is not the measuring's."""
    side = Side("hcr:resnet18", "fp32", channels_last=True)
    with fair_settings():
        twins = {name: contender(side, "train", 4, 32, torch.device("cpu"), 0.15) for name in ("a", "b")}
        wall = interleave(dict(twins), rounds=101, tolerance=0.008).ratio("b")
    found = min(wall, processor_ratio(twins["a"], twins["b"]), key=lambda one: one.high - one.low)
    assert abs(found.median - 1) <= 0.02, found
