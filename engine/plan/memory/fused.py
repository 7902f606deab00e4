"""What this package's own convolutions do within themselves on a GPU: buffers that die with the call.

Their results are seen by the tracker like any operator's; these are of the route through cuDNN (`aten`), where the
opened input and the corrected gradient are in memory (kernels.conv), as they are where the library multiplies for a
pointwise layer (kernels.product_routes). The package's own kernels form both in registers; with an excitation in the
load, the gradient behind the gate is in memory until the gate's own is known (kernels.excited_pointwise).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import archs.operator_flops  # noqa: F401  registers the operators and their arithmetic
from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import Extra
from kernels.product_routes import Sizes, backward_by_library, forward_by_library, keeps_operands

FORWARD = torch.ops.hcr.conv.default
BACKWARD = torch.ops.hcr.conv_backward.default
EXCITED_BACKWARD = torch.ops.hcr.excited_pointwise_backward.default
OPERATORS = (FORWARD, BACKWARD, EXCITED_BACKWARD)
"""Those that have buffers of their own."""


def extras(function: Any, arguments: tuple, results: list[Tensor]) -> Iterable[Extra]:
    """Buffers and workspace of one call of OPERATORS."""
    if function is EXCITED_BACKWARD:
        # beside dx, or beside the gated input, which is gone when dx is made, as are partial sums of some MiB
        within = [arguments[3]] + [arguments[0]] * (arguments[3].element_size() == 2)
        yield from (Extra(tensor.numel() * tensor.element_size(), Category.TRANSIENT) for tensor in within)
        return
    if function is FORWARD:
        images, weight, center, act, path = *arguments[:3], arguments[5], arguments[-1]
        opened = center is not None or act != "identity"
        operands, within = [images, results[0]], [images] * opened
        layer = Sizes.of(images, weight, *arguments[10:12], opened)
        by_library = forward_by_library(layer, images.numel() // images.shape[1])
    else:
        gradient, images, path = arguments[0], arguments[3], arguments[-3]
        # the gradient through the statistics, the input opened again, the gradient before the prologue
        operands, within = [gradient, images], [gradient, images, images]
        weight, center, act = arguments[4], arguments[7], arguments[10]
        opened = center is not None or act != "identity"
        layer = Sizes.of(images, weight, *arguments[15:17], opened)
        by_library = backward_by_library(layer) or keeps_operands(layer)
        if path == "pointwise":  # what is left of the second of the images is dx
            within = [gradient] * (arguments[5] is not None) + [images] * opened
    if path == "pointwise" and by_library and images.element_size() == 2:
        yield from (Extra(tensor.numel() * tensor.element_size(), Category.TRANSIENT) for tensor in within)
    if path == "aten":
        yield from (Extra(tensor.numel() * tensor.element_size(), Category.TRANSIENT) for tensor in within)
        largest = max(tensor.numel() * tensor.element_size() for tensor in operands)
        yield Extra(largest, Category.WORKSPACE, capped=True)
