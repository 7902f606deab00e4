"""Pointwise layers whose three products are the library's, with the passes beside them as kernels.

dY and x' are formed once each, in buffers that die with the call (kernels.product_routes says where and why):

    forward    x' = act(norm(x)); y = x' · wᵀ; statistics of y
    backward   dY; dx' = dY · w; dx, x' and the sums in one pass over dx' and x; dw = dYᵀ · x'

With a gate the pass over dx' and x leaves the gated x' and the five sums of `kernels.squeeze_excite`, and dx waits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import norm_act, squeeze_excite
from kernels.device.products import images_of, pixels_of, product
from kernels.device.statistics import batch_statistics


def forward(
    x: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y [N, O, H, W], and its mean and M2 [O]."""
    activated = x
    if center is not None or act != "identity":
        activated = norm_act.forward(x, center, scale, shift, None, act, slope, "none")
    y = images_of(product(pixels_of(activated), weight.flatten(1).to(x.dtype).t(), x.dtype), x)
    return (y, *batch_statistics(y)) if statistics else (y, None, None)


def backward(
    dy: Tensor,
    c1: Tensor | None,
    c2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    mean: Tensor | None,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight [O, C, 1, 1] in fp32, Σ dz [C], Σ dz · (x - center) [C]; None where not needed."""
    gradient, operand = _gradient_and_operand(dy, y, mean, c1, c2, weight)
    prologue = center is not None or act != "identity"
    dx = dweight = sum_dz = sum_dz_x = None
    activated = x
    if needs_input:
        dx = images_of(product(gradient, operand, x.dtype), x)
        if prologue:
            activated = torch.empty_like(x) if needs_weight else x
            dx, sum_dz, sum_dz_x = norm_act.backward_in_place(
                dx, x, center, scale, shift, act, slope, activated if needs_weight else None
            )
    elif prologue:
        activated = norm_act.forward(x, center, scale, shift, None, act, slope, "none")
    if needs_weight:
        dweight = product(gradient.t(), pixels_of(activated), torch.float32).view(weight.shape)
    return dx, dweight, sum_dz, sum_dz_x


def gated_backward(
    dy: Tensor,
    c1: Tensor | None,
    c2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    mean: Tensor | None,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    gate: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x' times the gate [N, C], dweight in fp32, and the five sums over tiles [5, N, T, C]."""
    gradient, operand = _gradient_and_operand(dy, y, mean, c1, c2, weight)
    da = images_of(product(gradient, operand, x.dtype), x)
    gated = torch.empty_like(x, memory_format=torch.channels_last)
    sums = squeeze_excite.five_sums(da, x, center, scale, shift, act, slope, gate, gated)
    return da, product(gradient.t(), pixels_of(gated), torch.float32).view(weight.shape), sums


def _gradient_and_operand(dy, y, mean, c1, c2, weight) -> tuple[Tensor, Tensor]:
    """dY [N · H · W, O], and the weight [O, C] in its dtype."""
    operand = None
    if y is not None:
        dy, operand = norm_act.batch_norm_backward(dy, y, mean, c1, c2, weight.contiguous())
    operand = weight.to(dy.dtype) if operand is None else operand
    return pixels_of(dy), operand.flatten(1)
