"""What this package's own convolutions do within themselves on a GPU: buffers that die with the call, and arithmetic.

Their results are seen by the tracker like any operator's; these are of the route through cuDNN (`aten`), where the
opened input and the corrected gradient are in memory (kernels.conv). The package's own kernels form both in registers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

import kernels.conv  # noqa: F401  registers the operators
from engine.memory.trace import Category
from engine.memory.tracker import Extra

FORWARD = torch.ops.hcr.conv.default
BACKWARD = torch.ops.hcr.conv_backward.default


def extras(function: Any, arguments: tuple, results: list[Tensor]) -> Iterable[Extra]:
    """Buffers and workspace of one call of FORWARD or BACKWARD."""
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
