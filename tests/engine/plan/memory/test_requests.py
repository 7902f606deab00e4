"""A run's requests, read off a recorded step."""

from functools import partial

import numpy as np
import pytest

import archs
from engine.config import OptimConfig
from engine.plan.memory.allocator import ENOUGH, replay
from engine.plan.memory.requests import STEPS, Requests, requests_of
from engine.plan.memory.simulate import Step, simulate
from engine.plan.memory.trace import Category
from engine.step.recompute import by_block

BUILD = partial(archs.build, "resnet18", 10)


@pytest.fixture(scope="module")
def trace():
    return simulate(BUILD, Step(32, 10, policy=by_block(9)))


def live(requests: Requests) -> np.ndarray:
    """Bytes after each event, rounded; every free is of something that is there."""
    alive: set[int] = set()
    for event in requests.events:
        if event > 0:
            assert event not in alive
            alive.add(event)
        else:
            alive.remove(-event)
    size = np.array([-(-nbytes // 512) * 512 for nbytes in requests.sizes])
    events = np.array(requests.events)
    return (np.sign(events) * size[np.abs(events) - 1]).cumsum()


def gradients(trace) -> list[int]:
    """Rows of the step's gradients."""
    born = trace.storage[trace.start :][trace.sign[trace.start :] > 0]
    return [int(row) for row in born if trace.category[row] == Category.GRADIENTS]


def test_the_highest_moment_is_the_recorded_peak(trace):
    assert live(requests_of(trace, 64, 64)).max() == trace.peak(64)
    kept = trace.with_gradients_kept()
    split = live(requests_of(trace, 16, 64, accumulation=4)).max()
    assert split == pytest.approx(kept.peak(16, 64), rel=1e-3)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("bucketed", [False, True])
def test_every_step_leaves_what_it_found(trace, accumulation, bucketed):
    held = live(requests_of(trace, 16, 16 * accumulation, accumulation=accumulation, bucketed=bucketed))
    rows = np.isin(trace.category, (Category.PARAMETERS, Category.OPTIMIZER))
    size = trace.bytes_at(16, 16)[0]
    there = size[rows].sum() + bucketed * size[gradients(trace)].sum()
    images = 16 * accumulation * (3 * 32 * 32 * 4 + 8 + 4)
    assert held[-1] == pytest.approx(there + images, rel=0.02)


def test_gradients_of_one_micro_batch_stay_for_the_next(trace):
    """Once a step they are kept; those of later micro-batches are added and freed at once."""
    row = gradients(trace)[0]
    for accumulation in (1, 4):
        requests = requests_of(trace, 16, 64, accumulation=accumulation)
        assert requests.events.count(row + 1) == requests.events.count(-row - 1) == STEPS
    assert requests_of(trace, 16, 64, bucketed=True).events.count(row + 1) == 0  # in the bucket that is there


def test_two_passes_and_an_average(trace):
    step = Step(32, 10, optim=OptimConfig(sam=0.05, ema=0.99))
    sharp = simulate(BUILD, step)
    for accumulation in (1, 3):
        requests = requests_of(sharp, 16, 16 * accumulation, accumulation=accumulation)
        assert live(requests).max() >= sharp.peak(16, 16 * accumulation)
        assert replay(requests.sizes, requests.events, ENOUGH).fits


def test_a_batch_s_forms_and_a_workspace_come_before_the_passes(trace):
    plain, more = (requests_of(trace, 16, 16, **extra) for extra in ({}, {"fixed": [1 << 20], "staged": [1 << 21]}))
    assert len(more.events) == len(plain.events) + 1 + 2 * STEPS
    assert live(more)[-1] == live(plain)[-1] + (1 << 20)
