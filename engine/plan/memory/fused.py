"""What this package's own convolutions do within themselves on a GPU: buffers that die with the call.

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

import archs.operator_flops  # noqa: F401  registers the operators and their arithmetic
from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import Extra

FORWARD = torch.ops.hcr.conv.default
BACKWARD = torch.ops.hcr.conv_backward.default
EXCITED_BACKWARD = torch.ops.hcr.excited_pointwise_backward.default
OPERATORS = (FORWARD, BACKWARD, EXCITED_BACKWARD)
"""Those that have buffers of their own."""


def extras(function: Any, arguments: tuple, results: list[Tensor]) -> Iterable[Extra]:
    """Buffers and workspace of one call of OPERATORS."""
    if function is EXCITED_BACKWARD:
        # beside dx; the partial sums of gate and weight, some MiB, are gone when dx is made
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
