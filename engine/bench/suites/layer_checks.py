"""Real layers through the kernels against float64: rows of the `kernels` suite, before any is timed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import kernels
from engine.bench.instrument.kernel_layers import Layer
from kernels.conv import call

CHECKED, CHECKED_BATCH = 12, 8
"""Real layers that are compared with float64 before any is timed, and images of each."""
WITHIN = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest ‖out - ref‖ / ‖ref‖: tf32 products in fp32, else operands that were rounded to 16 bits."""
RESULTS = ("output", "gradient of the images", "of the weight", "of the center", "of the scale", "of the shift")


def spread(layers: list[Layer], count: int) -> list[Layer]:
    """`count` of the layers, evenly over their list."""
    return [layers[place * len(layers) // count] for place in range(min(count, len(layers)))]


def layer_check(layer: Layer, batch: int, dtype: torch.dtype, device: torch.device, deadline: float) -> dict[str, Any]:
    """A real layer through the kernel against its twin in float64 on the same numbers: ‖out - ref‖ / ‖ref‖ of outputs
    and gradients. Raises RuntimeError above WITHIN, and for what is not finite."""
    torch.manual_seed(0)
    shape = (batch, layer.channels, layer.height, layer.width)
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(layer.outputs, layer.channels // layer.groups, layer.size, layer.size, device=device)
    weight = (weight / (layer.size * (layer.channels // layer.groups) ** 0.5)).to(dtype)
    vectors = [torch.rand(layer.channels, device=device) for _ in range(3)]
    path = "pointwise" if layer.size == 1 else "depthwise"
    found = layer_results(layer, x, weight, vectors, path)
    exact = layer_results(layer, x.double(), weight.double(), [one.double() for one in vectors], "aten")
    errors = {
        name: float((got.double() - want).norm() / want.norm())
        for name, got, want in zip(RESULTS, found, exact, strict=True)
    }
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    if not errors[worst] <= WITHIN[dtype]:
        raise RuntimeError(f"{worst} is off by {errors[worst]:.2g} of its norm, more than {WITHIN[dtype]:g}")
    return {"errors": errors, "summary": f"right: worst {worst} {errors[worst]:.1g}"}


def layer_results(layer: Layer, x: Tensor, weight: Tensor, vectors: list[Tensor], path: str) -> tuple[Tensor, ...]:
    """RESULTS of a layer with its prologue and statistics, without an excitation."""
    leaves = [one.detach().requires_grad_() for one in (x, weight, *vectors)]
    prologue = kernels.Prologue(*leaves[2:], layer.act)
    result = call(leaves[0], leaves[1], layer.stride, layer.size // 2, 1, layer.groups, 1, prologue, True, path)
    assert isinstance(result, tuple)
    y = result[0]
    return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))
