"""A rank's share of a global batch in the parts that the device takes at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.step.plan import Plan


def is_whole(batch, plan: Plan) -> bool:
    """Whether all ranks have the planned number of images; in the tail of an epoch no rank says so."""
    return batch.global_count == plan.global_batch_size


def micro_batches(batch, plan: Plan, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """(images, labels, weights, *more) of each micro-batch of a rank's share, in order; `more` has a row an image.

    Where the share does not divide evenly, a shorter micro-batch is filled up with its first image at weight 0: all
    have one shape, and the gradient is that of the share. The tail of an epoch is divided as it is, filled up to one
    image for each micro-batch, or two where BatchNorm needs them.
    """
    whole = is_whole(batch, plan)
    share = batch.images, batch.labels, batch.weights, *more
    if not whole:
        share = _filled(share, plan.accumulation * (2 if plan.normalised else 1))
    for part in zip(*(tensor.tensor_split(plan.accumulation) for tensor in share), strict=True):
        yield _filled(part, plan.micro_batch_size) if whole else part


def _filled(part: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """(images, labels, weights, …) with at least `size` images: the first one again, at weight 0."""
    images, labels, weights, *more = part
    missing = size - len(images)
    if missing <= 0:
        return part
    filler = torch.arange(size, device=images.device)
    filler[-missing:] = 0
    weights = torch.cat([weights, weights.new_zeros(missing)])
    images = images[filler].contiguous(memory_format=_layout(images))
    return images, labels[filler], weights, *(tensor[filler] for tensor in more)


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
