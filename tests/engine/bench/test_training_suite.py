"""Ways to train: what there was no time for is not called a failure, and is taken when the suite goes on."""

import pytest

from engine.bench.instrument import rows
from engine.bench.instrument.options import Options
from engine.bench.instrument.record import Store
from engine.bench.suites import training_suite

OPTIONS = Options(archs=("resnet18",), dry_run=True, precision="fp32")


class Ended:
    """A worker that is done at once."""

    def __init__(self, module: str, given: dict) -> None:
        self.given = given

    def ended(self) -> bool:
        return True

    def result(self) -> dict:
        return {"summary": "ran", "how": self.given["how"]}


class Endless(Ended):
    """A worker that is never done."""

    def ended(self) -> bool:
        return False

    def end(self) -> None:
        """Nothing runs."""


class Clock:
    """Time that passes by sleeping only, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(training_suite, "time", clock)
    monkeypatch.setattr(rows, "time", clock)


def run(tmp_path, budget: float, go_on: bool = False):
    store = Store("training", tmp_path)
    return rows.run_rows(training_suite.rows(OPTIONS), store, budget, say=lambda text: None, go_on=go_on), store


@pytest.mark.parametrize("worker", [Ended, Endless])
def test_what_there_was_no_time_for_is_measured_when_the_suite_goes_on(tmp_path, monkeypatch, worker):
    """Those that never end have two seconds, the others none; and another suite process has the time for all."""
    monkeypatch.setattr(training_suite, "Worker", worker)
    monkeypatch.setattr(training_suite, "ENDS", 38.0 if worker is Endless else 600.0)
    keys = [case.key for case in training_suite.cases(OPTIONS)]
    outcome, store = run(tmp_path, 40.0)
    assert outcome.not_reached == keys and not outcome.failed and set(store.rows) == {"all at once"}
    assert "running" not in store.document and store.rows["all at once"]["figures"]["summary"].endswith("5 not reached")
    monkeypatch.setattr(training_suite, "Worker", Ended)
    monkeypatch.setattr(training_suite, "ENDS", 0.0)
    outcome, store = run(tmp_path, 600.0, go_on=True)
    assert outcome.measured == keys and not outcome.failed and outcome.kept == ["all at once"]
    assert [store.rows[key]["figures"]["how"] for key in keys] == [case.how for case in training_suite.cases(OPTIONS)]


def test_what_had_its_time_and_did_not_end_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(training_suite, "Worker", Endless)
    monkeypatch.setattr(training_suite, "ENDS", 39.0)
    monkeypatch.setattr(training_suite, "ENOUGH", 0.1)
    outcome, _ = run(tmp_path, 40.0)
    assert "had not ended after 1 s" in outcome.failed["resnet18 fp32 eager"]
