"""A rank's share of a global batch in the parts that the device takes at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.planner import Plan


def is_whole(batch, plan: Plan) -> bool:
    """Whether all ranks have the planned number of images; in the tail of an epoch no rank says so."""
    return batch.global_count == plan.global_batch_size


def micro_batches(batch, plan: Plan) -> Iterator[tuple[Tensor, ...]]:
    """(images, labels, weights) of each micro-batch of a rank's share, in order.

    Where the share does not divide evenly, a shorter micro-batch is filled up with its first image at weight 0: all
    have one shape, and the gradient is that of the share. The tail of an epoch is divided as it is.
    """
    whole = is_whole(batch, plan)
    parts = (tensor.tensor_split(plan.accumulation) for tensor in (batch.images, batch.labels, batch.weights))
    for images, labels, weights in zip(*parts, strict=True):
        missing = plan.micro_batch_size - len(images) if whole else 0
        if missing > 0:
            filler = torch.arange(plan.micro_batch_size, device=images.device) % (plan.micro_batch_size - missing)
            filler[-missing:] = 0
            weights = torch.cat([weights, weights.new_zeros(missing)])
            images, labels = images[filler].contiguous(memory_format=_layout(images)), labels[filler]
        yield images, labels, weights


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
