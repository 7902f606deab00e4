"""A share in micro-batches: every image once, all of one shape; what only fills up does not count."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.config import OptimConfig, RunConfig
from engine.step.micro_batches import micro_batches
from engine.step.plan import Hardware, make_plan
from tests.engine.recovery.test_rescue import Net

PLAN = make_plan(RunConfig(optim=OptimConfig(batch_size=20)), Net(), Hardware("cpu", "CPU"))


def batch_of(count: int, weights: torch.Tensor | None = None, whole: int = 20):
    images = torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    images = images.contiguous(memory_format=torch.channels_last)
    weights = torch.ones(count) if weights is None else weights
    return SimpleNamespace(images=images, labels=torch.arange(count), weights=weights, global_count=min(count, whole))


def plan_of(micro: int, parts: int, normalised: bool = True):
    return replace(PLAN, micro_batch_size=micro, accumulation=parts, normalised=normalised)


def counted(parts) -> list[int]:
    """The images that count, in order."""
    return [int(label) for _, labels, weights in parts for label, weight in zip(labels, weights, strict=True) if weight]


@pytest.mark.parametrize(("micro", "parts"), [(20, 1), (10, 2), (3, 8), (1, 20)])
def test_a_whole_share_has_micro_batches_of_the_planned_size(micro, parts):
    found = list(micro_batches(batch_of(20), plan_of(micro, parts)))
    assert [len(images) for images, _, _ in found] == [micro] * parts
    assert counted(found) == list(range(20))
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _, _ in found)


@pytest.mark.parametrize(
    ("tail", "parts", "normalised", "sizes"),
    [
        (7, 2, True, [4, 3]),
        (3, 2, True, [2, 2]),
        (2, 4, True, [2, 2, 2, 2]),
        (2, 4, False, [1, 1, 1, 1]),
        (1, 1, True, [2]),
    ],
)
def test_a_tail_is_filled_up_to_what_batchnorm_takes(tail, parts, normalised, sizes):
    found = list(micro_batches(batch_of(tail), plan_of(20 // parts, parts, normalised)))
    assert [len(images) for images, _, _ in found] == sizes
    assert counted(found) == list(range(tail))


def test_an_unreadable_image_does_not_count_again_where_it_fills_up():
    weights = torch.tensor([0.0, 1.0, 1.0])
    assert counted(micro_batches(batch_of(3, weights), plan_of(5, 4))) == [1, 2]
