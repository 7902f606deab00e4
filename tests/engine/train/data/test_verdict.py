"""Who waited for whom: the loader that is timed alone, the steps, and the knob."""

import time
from types import SimpleNamespace

import pytest
import torch

from engine.config import DataConfig, LogConfig, OptimConfig
from engine.train.data.verdict import Pace, Verdict, bound_by, ceiling

CPU = torch.device("cpu")


class SlowLoader:
    """Batches of 10 images, each after some seconds."""

    def __init__(self, batches: int, seconds: float, size: int | None = None) -> None:
        self.batches, self.seconds, self.size, self.asked = batches, seconds, size, 0

    def epoch(self, epoch, start_step=0):
        self.asked += 1
        for _ in range(self.batches):
            time.sleep(self.seconds)
            yield SimpleNamespace(images=torch.zeros(10, 1))


def plan(**facts):
    policy = SimpleNamespace(kind=facts.pop("recompute", "none"))
    return SimpleNamespace(**{"policy": policy, "device": "cpu", "precision": "fp32", "compile": False} | facts)


def test_the_loader_is_timed_without_its_start():
    loader = SlowLoader(20, 0.005)
    assert 0 < ceiling(loader, 0, CPU, 0.0) <= 10 / 0.005  # never faster than its sleep
    assert ceiling(SlowLoader(1, 0.0), 0, CPU, 0.0) == 0


def test_the_first_stretch_is_not_counted():
    pace = Pace()
    pace.add(10, 5.0, 4.0)
    pace.add(20, 1.0, 0.5)
    assert (pace.images, pace.seconds, pace.waited) == (20, 1.0, 0.5)
    pace.restart()
    pace.add(20, 1.0, 0.5)
    assert pace.images == 20


def test_which_side_is_slower():
    assert bound_by(1830, 410) == "compute" and bound_by(410, 1830) == "loader" and bound_by(100, 105) == "both"


def verdict_of(loader, images=100, seconds=1.0, waited=0.0, plan_=None, **data):
    found = Verdict(DataConfig(**data), 1, CPU)
    found.pace.begun = True
    found.pace.add(images, seconds, waited)
    return *found.of_epoch(loader, 0, plan_ or plan()), found


def test_the_line_and_its_knob(monkeypatch):
    monkeypatch.setattr("engine.train.data.verdict.os.sched_getaffinity", lambda pid: set(range(4)))
    row, line, _ = verdict_of(SlowLoader(20, 0.0005), images=10)
    assert row["bound"] == "compute" and line.endswith("step 10 img/s: compute-bound")
    row, line, _ = verdict_of(SlowLoader(20, 0.01), images=10_000, waited=0.9, workers=1)
    assert row["bound"] == "loader" and row["step_rate"] == pytest.approx(100_000)
    assert line.endswith("loader-bound; --data.workers 4 would help")
    fast = SlowLoader(20, 0.0)
    assert "--recompute none" in verdict_of(fast, 1, plan_=plan(recompute="block"))[1]
    assert "--precision bf16" in verdict_of(fast, 1, plan_=plan(device="cuda"))[1]
    assert "--compile" in verdict_of(fast, 1, plan_=plan(device="cuda", precision="bf16"))[1]


def test_a_loader_is_timed_once_unless_its_images_grow():
    loader = SlowLoader(4, 0.0, size=32)
    _, _, found = verdict_of(loader)
    for size, asked in ((32, 1), (48, 2)):
        loader.size = size
        found.pace.add(100, 1.0, 0.0)
        found.of_epoch(loader, 1, plan())
        assert loader.asked == asked
    assert found.of_epoch(loader, 2, plan()) == ({}, "")  # no step was seen


def test_a_run_says_it_and_keeps_it(make_trainer, capsys):
    trainer = make_trainer(images=80, optim=OptimConfig(epochs=2, batch_size=16, lr=0.01), log=LogConfig(every=1))
    trainer.fit()
    said = [line for line in capsys.readouterr().out.splitlines() if "loader ceiling" in line]
    assert len(said) == 2 and all("img/s, step" in line for line in said)
    rows = trainer.folder.metrics.read_text()
    assert rows.count('"loader_ceiling"') == 2 and rows.count('"bound"') == 2
