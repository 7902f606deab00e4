"""Each schedule against torch's class of that name, over a thousand steps."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch.optim import lr_scheduler

from engine.config import ConfigError, OptimConfig
from engine.config.optim import SCHEDULES as NAMES
from engine.step.schedule import SCHEDULES, learning_rate

STEPS, EPOCHS = 100, 10
WHOLE = STEPS * EPOCHS


def ours(**fields) -> list[float]:
    config = OptimConfig(epochs=EPOCHS, lr=0.4, **fields)
    return [learning_rate(step, STEPS, config) for step in range(WHOLE)]


def theirs(make) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4, momentum=0.9)
    schedule = make(optimizer)
    rates = []
    for _ in range(WHOLE):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


CASES = {
    "constant": ({}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "cosine": ({"min_lr": 0.01}, lambda o: lr_scheduler.CosineAnnealingLR(o, WHOLE, eta_min=0.01)),
    "linear": ({"min_lr": 0.04}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, WHOLE)),
    "polynomial": ({"power": 0.9}, lambda o: lr_scheduler.PolynomialLR(o, WHOLE, 0.9)),
    "exponential": ({"gamma": 0.7}, lambda o: lr_scheduler.ExponentialLR(o, 0.7 ** (1 / STEPS))),
    "step": ({"step_epochs": 2.5}, lambda o: lr_scheduler.StepLR(o, 250, 0.1)),
    "multistep": ({"milestones": (3, 4.5, 9)}, lambda o: lr_scheduler.MultiStepLR(o, [300, 450, 900], 0.1)),
    "one-cycle": ({}, lambda o: lr_scheduler.OneCycleLR(o, 0.4, total_steps=WHOLE + 1)),
    "triangular": ({"cycle_steps": (70, 31)}, lambda o: lr_scheduler.CyclicLR(o, 0.02, 0.4, 70, 31, "triangular")),
    "triangular2": ({"cycle_steps": (70, 31)}, lambda o: lr_scheduler.CyclicLR(o, 0.02, 0.4, 70, 31, "triangular2")),
    "exp-range": (
        {"cycle_steps": (100, 100), "gamma": 0.999},
        lambda o: lr_scheduler.CyclicLR(o, 0.02, 0.4, 100, 100, "exp_range", gamma=0.999),
    ),
}
"""Fields, and torch's own. OneCycleLR is built for a step more, as it refuses the call behind the last one."""


def test_every_schedule_is_compared():
    assert {*CASES, "plateau"} == set(SCHEDULES) == set(NAMES), "plateau: tests/engine/train/test_ending.py"


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_is_torchs(name):
    fields, make = CASES[name]
    if make(torch.optim.SGD([torch.zeros(1)], lr=0.4, momentum=0.9)).__class__ is lr_scheduler.CyclicLR:
        fields = fields | {"min_lr": 0.02}
    if name == "one-cycle":
        fields = fields | {"schedule_steps": WHOLE + 1}
    found, expected = ours(schedule=name, **fields), theirs(make)
    assert max(abs(mine - other) for mine, other in zip(found, expected, strict=True)) < 1e-12


def test_cosine_with_cycles_restarts_at_the_peak():
    rates = ours(schedule="cosine", cycles=4, min_lr=0.1)
    expected = theirs(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, WHOLE // 4, eta_min=0.1))
    assert max(abs(mine - other) for mine, other in zip(rates, expected, strict=True)) < 1e-12


def test_warmup_comes_before_any_schedule():
    rates = ours(schedule="linear", warmup_steps=200, warmup_lr=0.1)
    assert rates[:200] == pytest.approx([0.1 + 0.3 * (step + 1) / 200 for step in range(200)], abs=1e-15)
    assert rates[200] == 0.4 and all(later < earlier for earlier, later in pairwise(rates[200:]))
    held = ours(schedule="linear", warmup_epochs=1, warmup="constant", warmup_lr=0.05)
    assert set(held[:100]) == {0.05} and held[100] == 0.4


def test_a_schedule_longer_than_the_run_is_cut_and_a_shorter_one_stays_at_its_end():
    assert ours(schedule="cosine", schedule_steps=2 * WHOLE)[-1] == pytest.approx(0.2, abs=1e-3)
    short = ours(schedule="polynomial", power=2.0, schedule_steps=300, min_lr=0.01)
    assert set(short[300:]) == {0.01}


@pytest.mark.parametrize(("rule", "rate"), [("linear", 0.4), ("sqrt", 0.1 * math.sqrt(4))])
def test_the_rate_follows_the_batch(rule, rate):
    config = OptimConfig(lr=0.1, batch_size=1024, lr_base=256, lr_scale=rule)
    assert learning_rate(0, 10, config) == config.peak_lr == pytest.approx(rate)
    assert config.rate_line().endswith(f"(1024 / 256) = {rate:g}") and not OptimConfig().rate_line()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"schedule": "triangular", "cycle_steps": (0, 10)}, "cycle-steps must be at least 1"),
        ({"schedule": "multistep"}, "milestones and --optim.schedule multistep go together"),
        ({"milestones": (3.0,)}, "milestones and --optim.schedule multistep go together"),
        ({"schedule": "multistep", "milestones": (3.0, 2.0)}, "epochs above 0 that grow"),
        ({"min_lr": 0.5}, r"min-lr must be in \[0, --lr\)"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\]"),
        ({"warmup": "constant", "warmup_steps": 5}, "give one above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        OptimConfig(lr=0.1, **fields)


def test_stepping_once_an_epoch_takes_epochs_for_steps():
    """As the learning repository's loop does: WarmupCosine(500, 10000) never leaves its warm-up in ten epochs."""
    vit = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=500, schedule_steps=10_000)
    wrong = dataclasses.replace(vit, step_per_epoch=True)
    for step in range(0, 3910, 17):
        assert learning_rate(step, 391, wrong) == learning_rate(step // 391, 391, vit)
    assert max(learning_rate(step, 391, wrong) for step in range(3910)) <= 2e-5
