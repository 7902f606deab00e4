"""From a path's name to its kernels."""

from __future__ import annotations

from torch import Tensor

from kernels.device import depthwise, depthwise_backward, library_products, pointwise, pointwise_backward
from kernels.device.launch import warpgroup_products
from kernels.device.pointwise_tiles import multiplied_by_library
from kernels.product_routes import Sizes, backward_by_library, forward_by_library


def forward(
    path: str,
    x: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    stride: list[int],
    padding: list[int],
    groups: int,
    shuffle: int,
    statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Raw output, and its mean and M2 where `statistics`."""
    prologue = (center, scale, shift, act, slope)
    if path == "depthwise":
        return depthwise.forward(x, weight, *prologue, stride[0], padding, statistics)
    layer = Sizes.of(x, weight, groups, shuffle, center is not None or act != "identity")
    if multiplied_by_library(x) and forward_by_library(layer, x.numel() // x.shape[1]):
        return library_products.forward(x, weight, *prologue, statistics)
    return pointwise.forward(x, weight, *prologue, groups, shuffle, statistics)


def backward(
    path: str,
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
    stride: list[int],
    padding: list[int],
    groups: int,
    shuffle: int,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, Σ dz, Σ dz · (x - center); None where not needed."""
    tensors = (dy, c1, c2, x, weight, y, mean, center, scale, shift, act, slope)
    if path == "depthwise":
        return depthwise_backward.backward(*tensors, stride[0], padding, needs_input, needs_weight)
    layer = Sizes.of(x, weight, groups, shuffle, center is not None or act != "identity")
    if multiplied_by_library(x) and backward_by_library(layer, warpgroup_products(x.device)):
        return library_products.backward(*tensors, needs_input, needs_weight)
    return pointwise_backward.backward(*tensors, groups, shuffle, needs_input, needs_weight)
