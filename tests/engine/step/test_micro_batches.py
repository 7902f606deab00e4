"""A share in micro-batches: every image once, all of one shape; what only fills up does not count."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.config import OptimConfig, RunConfig
from engine.step.micro_batches import even_passes, micro_batches
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
    return [
        int(label) for _, labels, weights, *_ in parts for label, weight in zip(labels, weights, strict=True) if weight
    ]


@pytest.mark.parametrize(("micro", "parts"), [(20, 1), (10, 2), (3, 8), (1, 20)])
def test_a_whole_share_has_micro_batches_of_the_planned_size(micro, parts):
    found = list(micro_batches(batch_of(20), plan_of(micro, parts)))
    assert [len(images) for images, *_ in found] == [micro] * parts
    assert counted(found) == list(range(20))
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, *_ in found)


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
    assert [len(images) for images, *_ in found] == sizes
    assert counted(found) == list(range(tail))


def test_an_unreadable_image_does_not_count_again_where_it_fills_up():
    weights = torch.tensor([0.0, 1.0, 1.0])
    assert counted(micro_batches(batch_of(3, weights), plan_of(5, 4))) == [1, 2]


def synchronised(counts: list[int], micro: int, parts: int) -> list[list[tuple[int, int | None]]]:
    """(images, how many of them BatchNorm counts) of each micro-batch, for each rank; 20 images are a whole batch."""
    plan = replace(plan_of(micro, parts), ranks=len(counts), sync_bn=True)
    found = []
    for count in counts:
        batch = batch_of(max(1, count), None if count else torch.zeros(1))
        batch.count, batch.global_count = count, sum(counts)
        found.append([(len(part.images), part.counted) for part in micro_batches(batch, plan)])
        assert counted(micro_batches(batch, plan)) == list(range(count))
    return found


@pytest.mark.parametrize(
    ("counts", "micro", "parts", "expected"),
    [
        ([7, 7, 6], 7, 1, [[(7, None)], [(7, None)], [(6, None)]]),
        ([7, 7, 6], 4, 2, [[(4, None), (4, 3)]] * 2 + [[(4, 3), (4, 3)]]),
        ([1, 1, 0], 7, 1, [[(1, None)], [(1, None)], [(1, 0)]]),
        ([1, 0, 0], 7, 1, [[(2, None)], [(1, 0)], [(1, 0)]]),
        ([2, 1, 1], 4, 2, [[(1, None), (2, None)], [(1, None), (1, 0)], [(1, None), (1, 0)]]),
        ([1, 0], 10, 2, [[(2, None), (2, None)], [(1, 0), (2, None)]]),
    ],
)
def test_batchnorm_over_all_ranks_counts_no_image_that_fills_up(counts, micro, parts, expected):
    """A micro-batch of one image over all ranks has it twice, as a single process has; one of none anywhere counts
    what fills it up, as there is nothing else."""
    assert synchronised(counts, micro, parts) == expected


def test_a_smaller_share_that_is_taken_at_once_is_not_filled_up():
    plan = replace(plan_of(7, 1), ranks=3)
    assert [len(part.images) for part in micro_batches(batch_of(6, whole=20), plan)] == [6]


@pytest.mark.parametrize(
    ("images", "ranks", "micro", "passes"), [(9, 2, 2, 3), (8, 2, 2, 2), (1, 3, 4, 1), (32, 3, 4, 3)]
)
def test_all_ranks_make_the_passes_of_the_largest_share(images, ranks, micro, passes):
    assert even_passes(images, ranks, micro) == passes
