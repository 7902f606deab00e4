"""Activation recompute: keep a block's input only, run its forward again in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

BatchNorm = nn.modules.batchnorm._BatchNorm  # the base of BatchNorm1d, 2d, 3d and SyncBatchNorm


@contextmanager
def statistics_suspended(norms: list[Any]) -> Iterator[None]:
    """Let BatchNorm layers normalise with the batch's statistics and leave their running ones alone.

    The recompute is the second forward of the same images; without this it updates the running statistics twice
    (pytorch issue 96136).
    """
    suspended = [norm for norm in norms if norm.training and norm.running_mean is not None]
    kept = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in suspended]
    for norm, (mean, var, _) in zip(suspended, kept, strict=True):
        # Scratch takes the update: checkpoint wants as many saved tensors as the first forward had.
        norm.running_mean, norm.running_var = torch.empty_like(mean), torch.empty_like(var)
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, statistics in zip(suspended, kept, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = statistics


def recomputed(forward: Callable, norms: list[BatchNorm], *inputs):
    """`forward(*inputs)` keeping only the inputs, where there will be a backward pass."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():
        # AOTAutograd functionalises the running statistics: their update is traced once and is not part of what
        # the partitioner recomputes, so no context is needed (and Dynamo takes none).
        return checkpoint(forward, *inputs, use_reentrant=False)
    contexts = partial(_contexts, norms)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(norms: list[BatchNorm]) -> tuple:
    return nullcontext(), statistics_suspended(norms)


def recompute_blocks(model: Any) -> int:
    """Make every block of `model.blocks()` (archs.Classifier) recompute its activations; returns how many there are.

    Outputs, gradients, BatchNorm statistics and dropout masks stay as they were.
    """
    count = 0
    for block in model.blocks():
        norms = [module for module in block.modules() if isinstance(module, BatchNorm)]
        block.forward = partial(recomputed, block.forward, norms)
        count += 1
    return count
