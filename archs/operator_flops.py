"""Arithmetic of the operators in `kernels`, for torch's counters: those of the plain layers that they stand for.

Two operations a multiply-add; normalisation, activation and pooling count nothing, there as here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

import kernels  # noqa: F401  registers the operators


@register_flop_formula(torch.ops.hcr.conv)
def convolution_flops(images: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the convolution; its prologue is traffic, not arithmetic."""
    return conv_flop_count(images, weight, out_shape[0])


@register_flop_formula(torch.ops.hcr.conv_backward)
def convolution_backward_flops(gradient: Any, c1: Any, c2: Any, images: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Once for the input, once for the weight, as they are needed (the last two arguments)."""
    return conv_flop_count(images, weight, gradient) * sum(map(bool, rest[-2:]))


def _gate_flops(images: Any, first: Any, products: int) -> int:
    """Of matrix products with the excitation's layers [R, C] and [C, R], each over all images."""
    return products * 2 * images[0] * first[0] * first[1]


@register_flop_formula(torch.ops.hcr.excited_pointwise)
def excited_flops(images: Any, weight: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """The convolution and both layers of its excitation."""
    return conv_flop_count(images, weight, out_shape[0]) + _gate_flops(images, rest[5], 2)


@register_flop_formula(torch.ops.hcr.excited_pointwise_backward)
def excited_backward_flops(gradient: Any, c1: Any, c2: Any, images: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Each product twice, for its input and its weight."""
    return 2 * conv_flop_count(images, weight, gradient) + _gate_flops(images, rest[7], 4)


@register_flop_formula(torch.ops.hcr.squeeze_excite)
def excitation_flops(images: Any, *rest: Any, **_: Any) -> int:
    """Both layers."""
    return _gate_flops(images, rest[5], 2)


@register_flop_formula(torch.ops.hcr.squeeze_excite_backward)
def excitation_backward_flops(gradient: Any, images: Any, *rest: Any, **_: Any) -> int:
    """Each layer twice, for its input and its weight."""
    return _gate_flops(images, rest[5], 4)
