"""Pointwise forward: [M, C] · [C, O] by groups, the prologue on the way in and the statistics on the way out.

A group's input channels are read in SLICES contiguous runs (one, or the shuffle's g): run r of group q is
x[:, r · C / SLICES + q · L + [0, L)], L = C / groups / SLICES. The weight's columns are relabelled to match, so
a channel shuffle costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import INTERPRETED, or_dummy, programs, small_tiles, warpgroup_products
from kernels.device.pointwise_math import activate, load_channels, normalise
from kernels.device.statistics import merge, new_partials


@triton.jit
def rows_of(tile, M, P, GATED: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr):
    """Image, rows [BM] and which of them are there, of a row tile; where a gate is at work it is of one image.

    WHOLE: all tiles are full, which the compiler is told, since masks are a third of what is executed."""
    if GATED:
        tiles = tl.cdiv(P, BM)
        image = (tile // tiles).to(tl.int64)
        pixel = (tile % tiles) * BM + tl.arange(0, BM)
        row = image * P + pixel
        inside = pixel < P
    else:
        image = tile.to(tl.int64)
        row = image * BM + tl.arange(0, BM)
        inside = row < M
    if WHOLE:
        inside = tl.full((BM,), True, tl.int1)
    return image, row, inside


@triton.jit
def within(place, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Which places of a block are below SIZE: all of them, as the compiler is told, where blocks divide it."""
    real = place < SIZE
    if SIZE % BLOCK == 0:
        real = tl.full((BLOCK,), True, tl.int1)
    return real


@triton.jit
def load_activated(
    x,
    row,
    c,
    inside,
    real,
    center,
    scale,
    shift,
    gate,
    C: tl.constexpr,
    AFFINE: tl.constexpr,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    GATED: tl.constexpr,
):
    """x' (times the image's gate [C]) in x's dtype, zero for rows outside and channels that are not the group's."""
    raw = tl.load(x + row[:, None] * C + c[None, :], mask=inside[:, None] & real[None, :], other=0.0)
    value = raw
    if AFFINE or ACT != "identity" or GATED:
        mu = load_channels(center, c, real, AFFINE)
        a = load_channels(scale, c, real, AFFINE)
        b = load_channels(shift, c, real, AFFINE)
        z = activate(normalise(raw.to(tl.float32), mu, a, b, AFFINE), ACT, SLOPE)
        if GATED:
            z = z * load_channels(gate, c, real, True)
        value = tl.where(inside[:, None] & real[None, :], z, 0.0).to(raw.dtype)
    return value


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """a · b + total in fp32. Triton's interpreter multiplies the bits of bf16 as integers, so there it gets fp32."""
    if PRECISION == "interpreted":
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def forward_kernel(
    x, w, y, center, scale, shift, gate, part_count, part_mean, part_m2, M, P, C: tl.constexpr, OUT: tl.constexpr,
    GROUPS: tl.constexpr, SLICES: tl.constexpr, L: tl.constexpr, OG: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATED: tl.constexpr, STATISTICS: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BL: tl.constexpr, TAKEN: tl.constexpr,
):  # fmt: skip
    """Program (row tile and TAKEN output blocks, group); x [M, C], w [O, SLICES · L], gate [M / P, C], y [M, O].

    Where one block holds a group's channels, x' is made once for all output blocks that a program takes.
    """
    STEPS: tl.constexpr = SLICES * ((L + BL - 1) // BL)
    parts: tl.constexpr = (OG + BO - 1) // BO // TAKEN
    tile = tl.program_id(0) // parts
    first = (tl.program_id(0) % parts) * TAKEN
    group = tl.program_id(1)
    image, row, inside = rows_of(tile, M, P, GATED, WHOLE, BM)
    if STEPS == 1:
        c = group * L + tl.arange(0, BL)
        real = within(tl.arange(0, BL), L, BL)
        value = load_activated(
            x, row, c, inside, real, center, scale, shift, gate + image * C, C, AFFINE, ACT, SLOPE, GATED
        )
    for turn in range(TAKEN):
        o = (first + turn) * BO + tl.arange(0, BO)
        known = within(o, OG, BO)
        channel = group * OG + o
        total = tl.zeros((BM, BO), tl.float32)
        for step in range(STEPS):
            run = step // (STEPS // SLICES)
            place = (step % (STEPS // SLICES)) * BL + tl.arange(0, BL)
            real = within(place, L, BL)
            if STEPS > 1:
                c = run * (C // SLICES) + group * L + place
                value = load_activated(
                    x, row, c, inside, real, center, scale, shift, gate + image * C, C, AFFINE, ACT, SLOPE, GATED
                )
            column = channel[None, :] * (SLICES * L) + (run * L + place)[:, None]
            weight = tl.load(w + column, mask=real[:, None] & known[None, :], other=0.0).to(x.dtype.element_ty)
            total = multiply_add(value, weight, total, PRECISION)
        rounded = total.to(y.dtype.element_ty)
        tl.store(y + row[:, None] * OUT + channel[None, :], rounded, mask=inside[:, None] & known[None, :])
        if STATISTICS:
            count = tl.sum(inside.to(tl.float32), 0)
            values = rounded.to(tl.float32)
            mean = tl.sum(tl.where(inside[:, None], values, 0.0), 0) / count
            difference = tl.where(inside[:, None], values - mean[None, :], 0.0)
            m2 = tl.sum(difference * difference, 0)
            tl.store(part_mean + tile.to(tl.int64) * OUT + channel, mean, mask=known)
            tl.store(part_m2 + tile.to(tl.int64) * OUT + channel, m2, mask=known)
            if (first + turn == 0) & (group == 0):
                tl.store(part_count + tile, count)


class Layout(NamedTuple):
    """How a layer's channels are cut: groups, runs a group, channels a run, output channels a group."""

    groups: int
    slices: int
    length: int
    outputs: int


def layout(channels: int, weight: Tensor, groups: int, shuffle: int) -> Layout:
    """The layer's Layout; a shuffle is the relabelling of `kernels.pointwise.reads_shuffled`."""
    return Layout(groups, shuffle, channels // groups // shuffle, weight.shape[0] // groups)


def readable(weight: Tensor, cut: Layout, dtype: torch.dtype, once: bool) -> Tensor:
    """[O, C / groups, 1, 1] as [O, slices · L], a run's columns side by side.

    once  a program reads all of its part at one time: it does so in the weight's own dtype and rounds it to the
          images'. Where parts of it are read again and again, a copy in the images' dtype is less to move.
    """
    flat = weight.flatten(1)
    if cut.slices > 1:
        flat = flat.unflatten(1, (cut.length, cut.slices)).transpose(1, 2).flatten(1)
    elif once:
        return flat.contiguous()
    return flat.to(dtype).contiguous()


def precision() -> str:
    """How operands are multiplied; only fp32 has a choice."""
    if INTERPRETED:
        return "interpreted"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def block(size: int, most: int) -> int:
    """A matrix tile's side: a power of two from 16 to `most`."""
    return max(16, min(most, triton.next_power_of_2(size)))


class Tile(NamedTuple):
    """What a program of the forward pass takes: rows, output and input channels at a time, and output blocks, of
    which `taken` divides the number."""

    rows: int
    outputs: int
    length: int
    taken: int
    warps: int


def forward_tile(cut: Layout, x: Tensor, pixels: int, rows: int, prologue: bool, gated: bool) -> Tile:
    """High and narrow: a thread then has many rows of few columns, whose statistics are summed in registers.

    Chosen by the instructions that `engine.bench.kernel_forecast` counts; wide ones for what memory's answers bound.
    """
    small = x.dtype.itemsize == 4 or small_tiles(x.device)
    length = block(cut.length, 32 if small else 64)
    if small:
        once = cut.slices == 1 and length >= cut.length  # x' is kept from one output block to the next
        # Eight warps where four would spill: a gate beside the prologue's vectors, or Turing.
        warps = 8 if gated or x.dtype.itemsize < 4 else 4
        return Tile(block(pixels, 64) if gated else 64, block(cut.outputs, 32 if once else 64), length, 1, warps)
    if gated:
        out_block = block(cut.outputs, 128)
        length = length if out_block == 128 else block(cut.length, 32)
        high = 256 if cut.length <= 32 and pixels % 256 == 0 and out_block <= 32 else 64
        return Tile(block(pixels, high), out_block, length, 1, 4)
    whole = block(cut.length, 128)
    if cut.slices == 1 and whole >= cut.length and (cut.outputs > 32 or whole <= 64):
        high, out_block = 256 if whole <= 64 else 128, block(cut.outputs, 32)
        tiles, blocks = triton.cdiv(rows, high) * cut.groups, triton.cdiv(cut.outputs, out_block)
        parts = min(blocks, triton.cdiv(programs(x.device, 3), tiles))
        taken = next(count for count in range(blocks // parts, 0, -1) if blocks % count == 0)
        return Tile(high, out_block, whole, taken, 4)
    if cut.length % 64 and cut.length <= 160:
        length = 32 if cut.length % 32 == 0 else 16
    if cut.outputs <= 64 or (not prologue and cut.length <= 160):
        return Tile(128, block(cut.outputs, 64), length, 1, 4)
    length = length if warpgroup_products(x.device) else block(cut.length, 32)  # 64 spill on sm_80
    return Tile(128, block(cut.outputs, 128), length, 1, 8)


def forward(
    x: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    groups: int,
    shuffle: int,
    statistics: bool,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y [N, O, H, W], and its mean and M2 [O]; `gate` [N, C] multiplies x' (without groups and shuffle)."""
    batch, channels, height, width = x.shape
    outputs, rows = weight.shape[0], batch * height * width
    cut = layout(channels, weight, groups, shuffle)
    y = torch.empty((batch, outputs, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels = height * width if gate is not None else rows
    tile = forward_tile(cut, x, pixels, rows, center is not None or act != "identity", gate is not None)
    tiles = rows // pixels * triton.cdiv(pixels, tile.rows)
    parts = triton.cdiv(cut.outputs, tile.outputs) // tile.taken
    count, means, m2s = new_partials(tiles if statistics else 1, outputs, x.device)
    weights = readable(weight, cut, x.dtype, cut.length <= tile.length)
    forward_kernel[(tiles * parts, groups)](
        x, weights, y, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x),
        or_dummy(gate, x), count, means, m2s, rows, pixels, channels, outputs,
        GROUPS=groups, SLICES=cut.slices, L=cut.length, OG=cut.outputs, AFFINE=center is not None, ACT=act,
        SLOPE=slope, GATED=gate is not None, STATISTICS=statistics, WHOLE=pixels % tile.rows == 0,
        PRECISION=precision(), BM=tile.rows, BO=tile.outputs, BL=tile.length, TAKEN=tile.taken,
        num_warps=tile.warps, num_stages=2, maxnreg=255,
    )  # fmt: skip
    return (y, *merge(count, means, m2s)) if statistics else (y, None, None)
