"""Sharpness-aware minimisation: a step goes down by the gradient of the place where the loss nearby is highest.

Foret et al. 2020, arXiv:2010.01412, algorithm 1. With g the gradient at the weights w, the base optimizer steps from w
by the gradient at w + e, e = rho · g / ‖g‖ (equation 2 with p = 2). ViT, Mixer and gMLP trained from scratch gain most
by it (Chen, Hsieh & Gong 2021, arXiv:2106.01548). A step takes two forward and two backward passes.

Both gradients are those of the whole global batch, summed over micro-batches and exchanged between ranks, so that the
function does not depend on how the batch is split. The paper's accelerators each take e from their own images alone
(m-sharpness, section 4.1), which costs one exchange less and is another function for every number of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.step.kept_copy import KeptCopy


class SharpnessAware:
    """The way up from a network's weights and back.

    model  the network without DDP around it; its tensors have to be whole and stay the same objects
    rho    length of e over all parameters together, above 0

    Nothing is kept from one step to the next. The weights move in place: compiled graphs and DDP keep their addresses.
    """

    def __init__(self, model: nn.Module, rho: float) -> None:
        self.rho = rho
        self._weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._copy = KeptCopy([*self._weights, *model.buffers()])

    def tensors(self) -> list[Tensor]:
        """What the copy holds in memory."""
        return self._copy.tensors()

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Inside, the weights are at w + e; gradients are used up, and the caller drops them.

        Afterwards weights and buffers are again as they were, bit for bit, whatever is raised inside: BatchNorm's
        statistics and counters move by the first pass alone. Dropout draws anew.
        """
        self._copy.take()
        try:
            self._climb()
            yield
        finally:
            self._copy.put_back()

    @torch.no_grad()
    def _climb(self) -> None:
        """w += rho · g / ‖g‖, without waiting for the device; g is scaled in place. A loss scale cancels.

        A gradient of zeros moves nothing. One that is not finite anywhere makes all weights NaN, and the classifier's
        the second gradient, whatever an activation does with a NaN: what looks for overflows there skips the step.
        """
        moving = [weight for weight in self._weights if weight.grad is not None]
        gradients = [weight.grad for weight in moving]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        factor = (self.rho / norm).masked_fill(norm == 0, 0.0).masked_fill(norm.isinf(), math.nan)
        torch._foreach_mul_(gradients, factor)
        torch._foreach_add_(moving, gradients)
