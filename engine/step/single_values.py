"""Whether a BatchNorm would see one value a channel, of which there is no variance: told before training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.config import ConfigError
from engine.config.pixels.image_size import ImageSize, px, sides
from engine.step.plan import Plan


class _One(Exception):
    """Found; the message is the layer's name."""


def refuse_single_values(model: nn.Module, plan: Plan, image_size: ImageSize, channels: int = 3) -> None:
    """Raise ConfigError where a micro-batch of one image leaves a BatchNorm a map of one pixel.

    image_size  the smallest that the run has
    """
    share = plan.global_batch_size // plan.ranks if plan.accumulation == 1 else plan.micro_batch_size
    if min(share, plan.micro_batch_size) != 1 or (plan.sync_bn and plan.ranks > 1) or not plan.normalised:
        return
    layer = single_valued(model, image_size, channels)
    if layer is not None:
        more = "--batch-size" if plan.global_batch_size < 2 * plan.ranks else "--parallel.micro-batch-size"
        least = 2 * plan.ranks if more == "--batch-size" else 2
        raise ConfigError(
            f"at {px(image_size)} and one image at a time, this network's BatchNorm ({layer}) sees one value a channel "
            f"and no variance; use {more} {least} or more, or a larger --image-size"
        )


def single_valued(model: nn.Module, image_size: ImageSize, channels: int = 3) -> str | None:
    """The first BatchNorm that sees one value a channel of a single image; None where all see more.

    The network runs on the meta device: shapes alone, no arithmetic, and its own statistics stay as they are.
    """
    probe = copy.deepcopy(model).to("meta").train()
    for name, module in probe.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_look(name))
    try:
        with torch.no_grad():
            probe(torch.empty(1, channels, *sides(image_size), device="meta"))
    except (_One, ValueError) as found:  # a fused layer says it itself
        return str(found)
    return None


def _look(name: str) -> Any:
    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            raise _One(name)

    return before
