"""What this package's own convolutions do within themselves on a GPU: buffers that die with the call, and arithmetic.

Their results are seen by the tracker like any operator's; these are of the route through cuDNN (`aten`), where the
opened input and the corrected gradient are in memory (kernels.conv). The package's own kernels form both in registers;
with an excitation in the load, the gradient behind the gate is in memory until the gate's own is known
(kernels.excited_pointwise).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

import kernels  # noqa: F401  registers the operators
from engine.memory.trace import Category
from engine.memory.tracker import Extra

FORWARD = torch.ops.hcr.conv.default
BACKWARD = torch.ops.hcr.conv_backward.default
EXCITED_BACKWARD = torch.ops.hcr.excited_pointwise_backward.default
OPERATORS = (FORWARD, BACKWARD, EXCITED_BACKWARD)
"""Those that have buffers of their own."""


def extras(function: Any, arguments: tuple, results: list[Tensor]) -> Iterable[Extra]:
    """Buffers and workspace of one call of OPERATORS."""
    if function is EXCITED_BACKWARD:
        # beside dx, in whose place partial sums lie before it: they are smaller
        yield Extra(arguments[3].numel() * arguments[3].element_size(), Category.TRANSIENT)
        return
    if function is FORWARD:
        images, center, act, path = arguments[0], arguments[2], arguments[5], arguments[-1]
        operands, within = [images, results[0]], [images] if center is not None or act != "identity" else []
    else:
        gradient, images, path = arguments[0], arguments[3], arguments[-3]
        # the gradient through the statistics, the input opened again, the gradient before the prologue
        operands, within = [gradient, images], [gradient, images, images]
    if path == "aten":
        yield from (Extra(tensor.numel() * tensor.element_size(), Category.TRANSIENT) for tensor in within)
        largest = max(tensor.numel() * tensor.element_size() for tensor in operands)
        yield Extra(largest, Category.WORKSPACE, capped=True)


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
