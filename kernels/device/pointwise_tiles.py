"""What a program of the pointwise backward takes, and which of its kernels a layer meets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kernels.device.launch import small_tiles, warpgroup_products
from kernels.device.pointwise import Layout, block
from kernels.product_routes import Sizes, one_kernel, padded

LONG_TILE_ELEMENTS = 16 * 128
"""The largest dw beside which twice the rows fit half the warps, so that memory is waited for less often."""


def in_one_kernel(x: Tensor, layer: Sizes) -> bool:
    """Whether dx and dw come from one kernel where both are needed."""
    return multiplied_by_library(x) and one_kernel(layer, warpgroup_products(x.device))


def multiplied_by_library(x: Tensor) -> bool:
    """Whether `kernels.product_routes` is about such images."""
    return x.dtype.itemsize == 2 and not small_tiles(x.device)


class BackTile(NamedTuple):
    """What a program that forms dx takes: rows, output and input channels at a time; and programs a multiprocessor
    where they walk."""

    rows: int
    outputs: int
    length: int
    warps: int
    programs: int


def back_tile(cut: Layout, x: Tensor, one_pass: bool, small: bool, kept: bool) -> BackTile:
    """small: dw is one block; kept: `input_kernel` stores its operands and makes no dw."""
    wide, turing = x.dtype.itemsize == 4, small_tiles(x.device)
    if kept:  # blocks that divide the channels execute less than wide ones that do not
        length = 64 if cut.length % 64 == 0 else block(cut.length, 32)
        high = length < 64 and warpgroup_products(x.device)  # elsewhere that spills
        return BackTile(128 if high else 64, block(cut.outputs, 64), length, 4, 4)
    if not one_pass:
        outputs = block(cut.outputs, 32 if wide or turing else 64)
        return BackTile(32 if wide else 64, outputs, block(cut.length, 64 if wide or turing else 128), 8, 4)
    whole_out, whole_in = padded(cut.outputs), padded(cut.length)
    long = whole_out * whole_in <= LONG_TILE_ELEMENTS
    outputs = whole_out if small else block(cut.outputs, 64)
    return BackTile(64 if long or not small else 32, outputs, whole_in, 4 if long or not small else 8, 4 if long else 2)
