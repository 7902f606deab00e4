"""Who multiplies in a pointwise layer of 16-bit images on sm_80 and later: one kernel, two, or the library.

A kernel that forms dY or x' in its loads does so again for each block of the other side's channels. Where that is most
of what it would execute, by the model of engine.bench.kernel_forecast, each is formed once, in a buffer that dies with
the call, and the library multiplies. Depends on nothing but sizes: what plans memory and counts bytes asks too.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ONE_PASS_ELEMENTS = 32 * 128
"""The largest dw that stays in registers beside everything else, from profiles/kernels-offline.json."""
BLOCKS_ELEMENTS = 64 * 128
"""As much of dw fits in blocks of 64 output channels beside few input channels: the layer that expands."""
MOST_OPENED = 64
"""Input channels with a prologue up to which one kernel for dx and dw executes less than two."""
LEAST, LEAST_OPENED, LEAST_PIXELS = 128, 256, 1 << 14
"""Channels on both sides from which the forward product is the library's, beside passes of its own: LEAST_OPENED; LEAST
without a prologue, in all images together so many pixels."""
LEAST_BACK = 96
"""Channels on both sides from which the backward ones are with a prologue, where one kernel cannot make both; without a
prologue from any number."""


class Sizes(NamedTuple):
    """Of a pointwise layer."""

    channels: int
    outputs: int
    groups: int
    shuffle: int
    opened: bool
    """There is a prologue."""

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, groups: int, shuffle: int, opened: bool) -> Sizes:
        """Of the layer with images [N, C, H, W] and a weight [O, C / groups, 1, 1]."""
        return cls(images.shape[1], weight.shape[0], groups, shuffle, opened)


def padded(size: int) -> int:
    """A matrix tile's side that takes all of it: a power of two from 16."""
    return max(16, 1 << (size - 1).bit_length())


def one_kernel(layer: Sizes, blocks: bool = True) -> bool:
    """Whether dx and dw come from one kernel where both are needed; blocks: also by blocks of outputs (sm_90)."""
    outputs, length = layer.outputs // layer.groups, layer.channels // layer.groups
    if layer.shuffle > 1 or (layer.opened and layer.groups == 1 and length > MOST_OPENED):
        return False
    by_blocks = padded(length) <= 64 and -(-outputs // 64) * 64 * padded(length) <= BLOCKS_ELEMENTS
    return padded(outputs) * padded(length) <= ONE_PASS_ELEMENTS or (blocks and by_blocks)


def forward_by_library(layer: Sizes, pixels: int) -> bool:
    """Whether the forward product is the library's; `pixels` N · H · W."""
    least = min(layer.channels, layer.outputs)
    many = least >= LEAST and not layer.opened and pixels >= LEAST_PIXELS
    return layer.groups == layer.shuffle == 1 and (least >= LEAST_OPENED or many)


def backward_by_library(layer: Sizes, blocks: bool = True) -> bool:
    """Whether the backward products are the library's; `blocks` as in `one_kernel`."""
    many = not layer.opened or min(layer.channels, layer.outputs) >= LEAST_BACK
    return layer.groups == layer.shuffle == 1 and many and not one_kernel(layer, blocks)


def keeps_operands(layer: Sizes, blocks: bool = True) -> bool:
    """Whether the kernel for dx stores x' and dY, which the library then multiplies to dw."""
    alone = one_kernel(layer, blocks) or backward_by_library(layer, blocks)
    return layer.groups == layer.shuffle == 1 and layer.opened and not alone
