"""Each slowdown that counting can see is seen, and an alarm needs what it says: no baseline file, no clock."""

import importlib.util
import itertools
import statistics
from pathlib import Path

import pytest

from engine.bench import regress
from engine.bench.instrument.measure import estimate
from engine.bench.regress import Baseline, NoBaseline, read_baseline, verdict, watch_step, worse_counts

SPEC = importlib.util.spec_from_file_location("plants", Path(__file__).with_name("plants.py"))
plants = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plants)


def count() -> dict[str, int]:
    """What a step and a batch count now."""
    from engine.bench.watched import count_loader, count_step, watched_trainer

    with watched_trainer() as trainer:
        return count_step(trainer) | count_loader()


@pytest.fixture(scope="module")
def before():
    """Counts of the engine as it is."""
    return count()


def test_counts_are_the_same_in_every_run(before):
    assert count() == before
    assert before["strided_convs"] == before["layout_copies"] == before["waits"] == before["loader_copied_bytes"] == 0
    assert before["saved_bytes"] > 1e6


@pytest.mark.parametrize("name", [name for name, (_, test) in plants.PLANTS.items() if "test_counts" in test])
def test_a_planted_slowdown_is_counted(name, before, monkeypatch):
    plant, test = plants.PLANTS[name]
    plant(monkeypatch)
    quantity = test.removeprefix("test_counts[").removesuffix("]")
    base = Baseline({key: [value] for key, value in before.items()}, "abc1234", "2026-01-01")
    (told,) = worse_counts(count(), base, (quantity,))
    assert told.startswith(f"{quantity}: ") and "abc1234" in told
    if name == "saved bytes":
        growth = float(told.partition("(+")[2].partition(" %")[0])
        assert 14.5 <= growth <= 15.5


def test_counts_may_shrink_and_round():
    base = Baseline({"saved_bytes": [1000, 1000], "waits": [0]}, "abc", "today")
    assert worse_counts({"saved_bytes": 1009, "waits": 0}, base, ("saved_bytes", "waits")) == []
    assert worse_counts({"saved_bytes": 500, "waits": 0}, base, ("saved_bytes", "waits")) == []
    assert worse_counts({"saved_bytes": 1011, "waits": 1}, base, ("saved_bytes", "waits")) == [
        "saved_bytes: 1011, was 1000 at abc (+1.1 %)",
        "waits: 1, was 0 at abc (+1)",
    ]


def test_the_margin_follows_the_noise_of_the_baseline():
    quiet = Baseline({"wall": [1.0, 1.001, 0.999]}, "abc", "today")
    assert quiet.margin("wall") == regress.LEAST_MARGIN and quiet.limit("wall") == pytest.approx(0.95)
    noisy = Baseline({"wall": [1.0, 1.05, 0.95]}, "abc", "today")
    assert noisy.margin("wall") == pytest.approx(3 * statistics.stdev([0.0, 0.04879, -0.05129]), rel=1e-3)


def test_a_verdict_needs_the_whole_interval():
    spread = estimate([0.90, 0.92, 0.93, 0.94, 0.95, 0.97])
    assert (
        verdict(spread, 0.98) == "slower" and verdict(spread, 0.85) == "fine" and verdict(spread, 0.93) == "undecided"
    )


class Race:
    """Rounds from a list of ratios, over and over."""

    made = 0

    def __init__(self, ratios: list[float]) -> None:
        self._ratios, self._seen = itertools.cycle(ratios), []
        Race.made += 1

    def round(self) -> None:
        self._seen.append(next(self._ratios))

    def ratios(self):
        return {"wall": estimate(self._seen), "processor": estimate([1.0] * len(self._seen))}


@pytest.fixture
def base(monkeypatch):
    """A baseline of 1 in both clocks, and little patience."""
    monkeypatch.setattr(regress, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(Race, "made", 0)
    return Baseline({"wall": [1.0, 1.0], "processor": [1.0, 1.0]}, "abc1234", "2026-01-01")


def test_a_slowdown_is_an_alarm_once_it_is_confirmed(base):
    told = watch_step(lambda: Race([0.90, 0.91, 0.92]), base)
    assert set(told) == {"wall"} and Race.made == 1 + regress.CONFIRMATIONS
    assert "9.0 % slower in wall time" in told["wall"] and "abc1234" in told["wall"]


def test_an_alarm_that_is_not_found_again_is_none(base):
    races = iter([Race([0.90]), Race([1.0])])
    assert watch_step(lambda: next(races), base) == {}


def test_noise_that_hides_the_limit_is_no_alarm(base):
    assert watch_step(lambda: Race([0.5, 1.5, 0.7, 1.3, 0.94, 0.96]), base) == {}
    assert Race.made == 1


def test_a_machine_without_a_baseline_is_told_how_to_take_one(tmp_path, monkeypatch):
    with pytest.raises(NoBaseline, match=r"this machine has no baseline; take one .*engine.bench.regress"):
        read_baseline(tmp_path)
    store = regress.Store(regress.SUITE, tmp_path)
    store.put(regress.SUITE, regress.settings(), "measured", 1.0, {"figures": {"runs": {"wall": [1.0]}}})
    assert read_baseline(tmp_path).centre("wall") == 1.0
    monkeypatch.setattr(regress, "settings", lambda: {"arch": "another"})
    with pytest.raises(NoBaseline, match="this run of"):
        read_baseline(tmp_path)
    monkeypatch.setattr(regress.torch, "__version__", "9.9")
    with pytest.raises(NoBaseline, match=r"taken with torch .*, not 9.9"):
        read_baseline(tmp_path)
