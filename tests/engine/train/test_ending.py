"""When a run ends early: never before its rule is met, never after; the same after a resume; on time by any clock."""

import math
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ConfigError, LogConfig, OptimConfig, RunConfig, StopConfig
from engine.recovery.checkpoint import checkpoint_to_resume
from engine.step.schedule import learning_rate
from engine.step.standing import Progress
from engine.train.ending import Ending
from tests.engine.train.test_trainer import StopAfter, assert_same, rows, weights

VALUES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-9, 1.0, math.nan]), st.floats(0, 1, allow_subnormal=False))


def evaluation(value: float, metric: str) -> SimpleNamespace:
    return SimpleNamespace(score=lambda asked: -value if asked == "loss" == metric else value)


def first_patient(values: list[float], patience: int, delta: float, less: bool) -> int | None:
    """By the definition: the first evaluation with `patience` before and with it that are no better than the best of
    those before them, each of which had to be better by more than delta to count."""
    best, bests = None, []
    for value in values:
        bests.append(best)
        better = best is None or (best - value if less else value - best) > delta
        if not math.isnan(value) and (value < best - delta if less and best is not None else better):
            best = value
    for last in range(len(values)):
        window = range(last - patience + 1, last + 1)
        if window.start < 0:
            continue
        if all(
            math.isnan(values[at])
            or (
                bests[at] is not None
                and not (values[at] < bests[at] - delta if less else values[at] > bests[at] + delta)
            )
            for at in window
        ):
            return last + 1
    return None


@given(
    values=st.lists(VALUES, min_size=1, max_size=30),
    patience=st.integers(1, 5),
    delta=st.sampled_from([0.0, 0.01, 0.3]),
    metric=st.sampled_from(["accuracy", "loss"]),
    resumed=st.integers(0, 30),
)
def test_patience_is_never_early_and_never_late(values, patience, delta, metric, resumed):
    config = RunConfig(
        optim=OptimConfig(epochs=1000), stop=StopConfig(patience=patience, min_delta=delta, metric=metric)
    )
    ending, ended = Ending(config, Progress(), 5, 1), None
    for number, value in enumerate(values, 1):
        if number == resumed:  # all that counts is in a checkpoint
            progress = Progress()
            progress.restore(vars(ending.progress).copy())
            ending = Ending(config, progress, 5, 1)
            ending.resumed()
        ending.evaluated(evaluation(value, metric), evaluation(value, metric), 1.0)
        if ending.reason:
            ended = number
            break
    assert ended == first_patient(values, patience, delta, metric == "loss")


@given(
    values=st.lists(VALUES, min_size=1, max_size=30),
    target=st.floats(0.01, 1),
    metric=st.sampled_from(["accuracy", "loss"]),
    delta=st.sampled_from([0.0, 0.3]),
)
def test_a_target_is_never_early_and_never_late(values, target, metric, delta):
    """Whatever patience calls better."""
    stop = StopConfig(target=target, metric=metric, patience=900, min_delta=delta)
    ending = Ending(RunConfig(optim=OptimConfig(epochs=1000), stop=stop), Progress(), 5, 1)
    met = [value <= target if metric == "loss" else value >= target for value in values]
    for value, reached in zip(values, met, strict=True):
        ending.evaluated(evaluation(value, metric), None, 1.0)
        assert (ending.reason == "target") == reached
        if reached:
            break


@given(values=st.lists(VALUES, min_size=1, max_size=40), patience=st.integers(1, 4), less=st.booleans())
def test_plateau_is_torchs(values, patience, less):
    metric = "loss" if less else "accuracy"
    optim = OptimConfig(
        epochs=1000, lr=1.0, schedule="plateau", plateau_metric=metric, plateau_patience=patience, gamma=0.5, min_lr=0.1
    )
    ending = Ending(RunConfig(optim=optim), Progress(), 5, 1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if less else "max", 0.5, patience, threshold=0.0, threshold_mode="abs", min_lr=0.1
    )
    for value in values:
        ending.evaluated(evaluation(value, metric), None, 1.0)
        theirs.step(value)
        assert learning_rate(7, 5, optim, ending.progress.falls) == pytest.approx(optimizer.param_groups[0]["lr"])


def seconds_until_the_end(hours, epochs, spe, step_seconds, evaluation_seconds, schedule, first=30.0):
    """A run by a clock of its own: (seconds, rates, Ending)."""
    optim = OptimConfig(epochs=epochs, lr=1.0, schedule=schedule, warmup_epochs=0.5)
    ending = Ending(RunConfig(optim=optim, stop=StopConfig(hours=hours)), Progress(), spe, 30)
    progress, clock, rates, since = ending.progress, 0.0, [], 0
    pending = 0.0
    while progress.epoch < epochs and not ending.reason:
        rates.append(learning_rate(progress.place(progress.in_steps_of(spe)), spe, optim))
        spent = step_seconds(progress.step) + (first if progress.step == 0 else 0)
        clock, pending, since = clock + spent, pending + spent, since + 1
        progress.step += 1
        progress.step_in_epoch += 1
        if ending.is_last() or progress.step == 1 or progress.step % 10 == 0:
            ending.settle(ending.estimate(pending, since, progress.step == 1))
            pending, since = 0.0, 0
        if progress.step_in_epoch == spe or ending.mid_epoch:
            clock += evaluation_seconds
            ending.evaluated(evaluation(0.5, "accuracy"), None, evaluation_seconds)
            progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
    return clock, rates, ending


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_it_ends_on_time_with_the_schedule(share, drift, schedule):
    """Whatever the speed, and where it changes on the way: within two log intervals, and the rate comes down to 0."""
    epochs, spe = 20, 100
    whole = epochs * spe * 2.0 + epochs * 20
    hours = share * whole / 3600

    def speed(step):
        return 2.0 * (1 + drift * math.sin(step / 40))

    clock, rates, ending = seconds_until_the_end(hours, epochs, spe, speed, 20.0, schedule)
    assert ending.reason == "hours"
    assert 0.9 * hours * 3600 - 60 <= clock <= hours * 3600 + 2 * 2.0 * (1 + drift)
    assert rates[-1] < (0.2 if share == 0.02 else 0.02) and max(rates) > 0.85  # 0.02: some eight steps to come down in
    top = rates.index(max(rates))
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[top:], rates[top + 1 :], strict=False))


def test_enough_time_changes_nothing():
    _, rates, ending = seconds_until_the_end(1000, 3, 20, lambda step: 1.0, 5.0, "cosine")
    optim = OptimConfig(epochs=3, lr=1.0, schedule="cosine", warmup_epochs=0.5)
    assert ending.reason is None and ending.row()["reason"] is None
    assert rates == pytest.approx([learning_rate(step, 20, optim) for step in range(60)], abs=1e-12)


OPTIM = OptimConfig(epochs=12, batch_size=16, lr=1e-5, optimizer="sgd")


def events(trainer) -> list[dict]:
    return [row for row in rows(trainer, "event") if row["event"] == "ended_early"]


def with_stop(trainer, **fields):
    from dataclasses import replace

    trainer.config = trainer.ending.config = replace(trainer.config, stop=StopConfig(**fields))
    return trainer


def test_a_run_ends_for_want_of_progress_and_says_so(make_trainer, capsys):
    """The rate is so low that accuracy stays: 1 evaluation and 3 without a better."""
    trainer = with_stop(make_trainer(optim=OPTIM), patience=3, min_delta=0.05)
    trainer.fit()
    assert len(rows(trainer, "epoch")) == 4 and trainer.over
    (event,) = events(trainer)
    assert (event["reason"], event["metric"], event["epoch"], event["step"]) == ("patience", "accuracy", 4, 12)
    assert "ended early: no better accuracy than" in capsys.readouterr().out


def test_it_ends_at_the_same_step_after_a_resume(make_trainer):
    stop = {"patience": 3, "metric": "loss", "min_delta": 0.5}
    first = with_stop(make_trainer("parts", optim=OPTIM), **stop)
    first.train_loader = StopAfter(first.train_loader, 2, 1)
    with first.interrupt:
        first.fit()
    assert not events(first) and not first.over
    second = with_stop(make_trainer("parts", optim=OPTIM), **stop)
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    second.fit()
    whole = with_stop(make_trainer("whole", optim=OPTIM), **stop)
    whole.fit()
    assert second.progress.epoch == whole.progress.epoch == 4
    assert_same(weights(whole), weights(second))


def test_raw_weights_beside_the_average(make_trainer):
    optim = OptimConfig(epochs=6, batch_size=16, lr=0.03, ema=0.999)
    trainer = with_stop(make_trainer(optim=optim), weights="raw", target=1e-9)
    trainer.fit()
    (row,) = rows(trainer, "epoch")
    assert row["raw_val_loss"] != row["val_loss"]
    assert events(trainer)[0]["best"] == row["raw_val_accuracy"]


def test_hours_end_a_run_in_mid_epoch_with_an_evaluation(make_trainer, monkeypatch):
    """By a clock that jumps at every look."""
    trainer = with_stop(make_trainer(optim=OPTIM, images=160, log=LogConfig(every=1)), hours=20 / 3600)
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    trainer.fit()
    (event,) = events(trainer)
    assert event["reason"] == "hours" and 0 < event["step"] < 20
    epochs = rows(trainer, "epoch")
    assert epochs[-1]["train_images"] < 160 and epochs[-1]["step"] == event["step"]
    assert trainer.over and trainer.folder.weights.is_file()


@pytest.mark.parametrize(
    ("stop", "optim", "told"),
    [
        ({"patience": 10}, {}, "--stop.patience 10 cannot end a run of 10 epochs"),
        ({"min_delta": 0.1}, {}, "--stop.min-delta has no effect without --stop.patience"),
        ({"target": 95.0}, {}, r"--stop.target of accuracy must be a share in \(0, 1\]"),
        ({"target": -1.0, "metric": "loss"}, {}, "must be a loss above 0"),
        ({"weights": "raw"}, {}, "--stop.weights raw has no effect without --stop.patience or --stop.target"),
        ({"weights": "raw", "patience": 2}, {}, "has no effect without --optim.ema"),
        ({"hours": -1.0}, {}, "--stop.hours must be from 0"),
        ({"hours": 1e308}, {}, "--stop.hours must be from 0"),
        ({}, {"schedule": "plateau"}, "--optim.plateau-metric and --optim.schedule plateau go together"),
        ({}, {"plateau_metric": "loss"}, "go together"),
    ],
)
def test_what_cannot_be_meant_is_refused(stop, optim, told):
    with pytest.raises(ConfigError, match=told):
        RunConfig(stop=StopConfig(**stop), optim=OptimConfig(**optim))
