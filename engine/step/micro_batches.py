"""A rank's share of a global batch in the parts that the device takes at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engine.step.plan import Plan
from engine.step.ranks.shares import largest_share, parts


class MicroBatch(NamedTuple):
    """What one forward pass takes; each tensor has a row an image."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    """0 where an image only fills up the shape, or could not be read."""
    taught: tuple[Tensor, ...] = ()
    counted: int | None = None
    """Images from the front that BatchNorm over all ranks counts; None is all of them."""


def is_whole(batch, plan: Plan) -> bool:
    """Whether all ranks have the planned number of images; in the tail of an epoch no rank says so."""
    return batch.global_count == plan.global_batch_size


def micro_batches(batch, plan: Plan, *more: Tensor) -> Iterator[MicroBatch]:
    """The micro-batches of a rank's share, in order; of `more` each has its rows as `taught`.

    A share that is accumulated and does not divide has shorter micro-batches, which are filled up with their first
    image at weight 0: all have one shape, and the gradient is that of the share. One that is taken at once is taken as
    it is, on each rank in its own size. The tail of an epoch is divided as it is, filled up to one image for each
    micro-batch, or two where BatchNorm needs them.

    BatchNorm over all ranks does not count what fills up, so it sees the images of one process, however they are split.
    """
    share = batch.images, batch.labels, batch.weights, *more
    if plan.sync_bn:
        yield from _synchronised(batch, plan, share)
        return
    whole = is_whole(batch, plan)
    if not whole:
        share = _filled(share, plan.accumulation * (2 if plan.normalised else 1))
    for part in zip(*(tensor.tensor_split(plan.accumulation) for tensor in share), strict=True):
        yield _micro_batch(_filled(part, plan.micro_batch_size) if whole and plan.accumulation > 1 else part)


def _synchronised(batch, plan: Plan, share: tuple[Tensor, ...]) -> Iterator[MicroBatch]:
    """As `micro_batches`, where BatchNorm sees all ranks' images."""
    ranks = [parts(count, plan.accumulation) for count in parts(batch.global_count, plan.ranks)]
    begin = 0
    for place, size in enumerate(parts(batch.count, plan.accumulation)):
        everywhere = sum(rank[place] for rank in ranks)
        part = tuple(tensor[begin : begin + size] if size else tensor[:1] for tensor in share)
        if not size:  # another rank has images in this micro-batch, or none has
            part = (*part[:2], torch.zeros_like(part[2]), *part[3:])
        begin += size
        least = 2 if everywhere < 2 and (size or not everywhere) else 1  # as alone: one image has no variance
        counted = max(size, least if size else 0)
        if is_whole(batch, plan) and plan.accumulation > 1:
            least = max(least, plan.micro_batch_size)
        part = _filled(part, least)
        yield _micro_batch(part, counted if counted < len(part[0]) and everywhere else None)


def _micro_batch(part: tuple[Tensor, ...], counted: int | None = None) -> MicroBatch:
    images, labels, weights, *taught = part
    return MicroBatch(images, labels, weights, tuple(taught), counted)


def even_passes(images: int, ranks: int, micro_batch_size: int) -> int:
    """Forward passes that every rank makes of `images` over all ranks, where each pass is one of all ranks."""
    return max(1, -(-largest_share(images, ranks) // micro_batch_size))


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
