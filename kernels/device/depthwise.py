"""Depthwise forward: prologue in the load, K × K taps on R rows of CW columns at once, statistics in the epilogue.

A program owns one image, BW runs of CW output columns and BC channels, and walks down STEPS times R rows. A thread
holds R × CW accumulators of a few channels: a pixel is loaded and activated once for all of them, so that an output
touches ((R - 1) · S + K) · ((CW - 1) · S + K) / (R · CW) pixels, 2.6 for K = 3, R = 2, CW = 7 instead of 9.
Sizes are compile-time constants, so that only lines and columns that can lie outside are asked whether they do.

Statistics are sums of differences from the first output of each thread and channel, and of their squares: that
reference is one of the values, so that no more is lost than the values' spread, however large their mean.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import or_dummy, small_tiles
from kernels.device.pointwise_math import activate, load_channels, merge_lanes, normalise
from kernels.device.statistics import merge, new_partials

CHANNELS_A_THREAD = {3: 4, 5: 2, 7: 2}
"""By K: fewer where there are more taps to hold."""
MOST_REGISTERS = {3: 168, 5: 200, 7: 255}
"""Of a thread by K, so that nothing spills: 12, 10 and 8 warps a multiprocessor."""


@triton.constexpr_function
def tap_of(line, pixel, cell, CW, K, S):
    """The tap kh · K + kw by which the tile's output `cell` sees its input pixel (line, pixel), or -1."""
    kh, kw = line - cell // CW * S, pixel - cell % CW * S
    return kh * K + kw if 0 <= kh < K and 0 <= kw < K else -1


@triton.jit
def load_tap(w, x, c, real, tap, K: tl.constexpr):
    """A tap of w [C, K, K], rounded to x's dtype, as a row [1, BC] of fp32."""
    taps = tl.load(w + c * (K * K) + tap, mask=real, other=0.0)
    return taps.to(x.dtype.element_ty).to(tl.float32)[None, :]


@triton.jit
def forward_kernel(
    x, w, y, center, scale, shift, part_count, part_mean, part_m2,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATISTICS: tl.constexpr,
    R: tl.constexpr, CW: tl.constexpr, STEPS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Program: image, strip of R · STEPS rows, BW · CW columns, BC channels (fastest); x [N, H, W, C].

    w is [C, K, K] for K = 3, whose taps stay in registers, and [K, K, C] for the others, read again each step.
    """
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    COLUMNS: tl.constexpr = (OW + BW * CW - 1) // (BW * CW)
    STRIPS: tl.constexpr = (OH + R * STEPS - 1) // (R * STEPS)
    LINES: tl.constexpr = (R - 1) * S + K
    PIXELS: tl.constexpr = (CW - 1) * S + K
    LAST_LINE: tl.constexpr = (STRIPS * STEPS - 1) * R * S - PH  # of the tile that lies lowest, its first one
    LAST_PIXEL: tl.constexpr = (COLUMNS * BW - 1) * CW * S - PW
    WHOLE: tl.constexpr = C % BC == 0
    WHOLE_ROWS: tl.constexpr = OH % (R * STEPS) == 0
    WHOLE_COLUMNS: tl.constexpr = OW % (BW * CW) == 0
    tile = tl.program_id(0) // BLOCKS
    c = tl.program_id(0) % BLOCKS * BC + tl.arange(0, BC)
    real = c < C
    ow = ((tile % COLUMNS) * BW + tl.arange(0, BW)) * CW
    strip = (tile // COLUMNS) % STRIPS
    n = (tile // (COLUMNS * STRIPS)).to(tl.int64)
    mu = load_channels(center, c, real, AFFINE)
    a = load_channels(scale, c, real, AFFINE)
    b = load_channels(shift, c, real, AFFINE)
    images = x + n * (H * W * C) + ((ow * S - PW)[:, None] * C + c[None, :])
    outputs = y + n * (OH * OW * C) + (ow[:, None] * C + c[None, :])
    weights = ()
    if K == 3:
        for tap in tl.static_range(K * K):
            weights = weights + (load_tap(w, x, c, real, tap, K),)
    pivot = tl.zeros((BW, BC), tl.float32)
    sums = tl.zeros((BW, BC), tl.float32)
    squares = tl.zeros((BW, BC), tl.float32)
    for step in range(STEPS):
        first = (strip * STEPS + step) * R
        top = first * S - PH
        line_images = images + top.to(tl.int64) * (W * C)
        line_outputs = outputs + first.to(tl.int64) * (OW * C)
        cells = ()
        for _cell in tl.static_range(R * CW):
            cells = cells + (tl.zeros((BW, BC), tl.float32),)
        rows = ()  # K > 3: the rows of taps that this line and those before it need
        for line in tl.static_range(LINES):
            ih = top + line
            line_inside = (ih >= 0) & (ih < H)
            a_line = a
            b_line = b
            if AFFINE and (line < PH or LAST_LINE + line >= H):  # act(0 · value + 0) is 0, what lies outside
                a_line = tl.where(line_inside, a, 0.0)
                b_line = tl.where(line_inside, b, 0.0)
            if K > 3 and line < K:
                for kw in tl.static_range(K):
                    rows = rows + (tl.load(w + (line * K + kw) * C + c, mask=real, other=0.0),)
            for pixel in tl.static_range(PIXELS):
                iw = ow * S - PW + pixel
                inside = (iw >= 0) & (iw < tl.where(line_inside, W, 0))
                place = (line * W + pixel) * C
                if pixel < PW or LAST_PIXEL + pixel >= W:
                    mask = inside[:, None] & real[None, :]
                    value = tl.load(line_images + place, mask=mask, other=0.0).to(tl.float32)
                elif line < PH or LAST_LINE + line >= H or not WHOLE:
                    mask = (c < tl.where(line_inside, C, 0))[None, :]
                    value = tl.load(line_images + place, mask=mask, other=0.0).to(tl.float32)
                else:
                    value = tl.load(line_images + place).to(tl.float32)
                value = activate(normalise(value, mu, a_line, b_line, AFFINE), ACT, SLOPE)
                if AFFINE and (pixel < PW or LAST_PIXEL + pixel >= W):
                    value = tl.where(inside[:, None], value, 0.0)
                updated = ()
                for cell in tl.static_range(R * CW):
                    total = cells[cell]
                    if tap_of(line, pixel, cell, CW, K, S) >= 0:
                        if K == 3:
                            total += value * weights[tap_of(line, pixel, cell, CW, K, S)]
                        else:
                            total += value * rows[tap_of(line, pixel, cell, CW, K, S)].to(tl.float32)[None, :]
                    updated = updated + (total,)
                cells = updated
        for cell in tl.static_range(R * CW):
            oh = first + cell // CW
            there = (ow + cell % CW) < tl.where(oh < OH, OW, 0)
            rounded = cells[cell].to(y.dtype.element_ty)
            place = (cell // CW * OW + cell % CW) * C
            if WHOLE_ROWS and WHOLE_COLUMNS and WHOLE:
                tl.store(line_outputs + place, rounded)
            else:
                tl.store(line_outputs + place, rounded, mask=there[:, None] & real[None, :])
            if STATISTICS:
                value = rounded.to(tl.float32)
                if cell == 0:
                    pivot = tl.where((step == 0) & there[:, None], value, pivot)
                difference = value - pivot
                if not (WHOLE_ROWS and WHOLE_COLUMNS):
                    difference = tl.where(there[:, None], difference, 0.0)
                sums += difference
                squares += difference * difference
    if STATISTICS:
        count_columns = tl.minimum(tl.maximum(OW - ow, 0), CW)
        count_rows = tl.minimum(OH - strip * (R * STEPS), R * STEPS)
        count = (count_columns * count_rows).to(tl.float32)
        share = sums / tl.maximum(count, 1.0)[:, None]
        total, merged, spread = merge_lanes(count, pivot + share, squares - sums * share)
        place = tile.to(tl.int64) * C + c
        tl.store(part_mean + place, merged, mask=real)
        tl.store(part_m2 + place, spread, mask=real)
        if tl.program_id(0) % BLOCKS == 0:
            tl.store(part_count + tile, total)


class Tile(NamedTuple):
    """Block sizes of a launch: R rows and CW columns a thread, STEPS of them down, BW threads' columns, BC channels."""

    rows: int
    columns: int
    steps: int
    lanes: int
    channels: int
    warps: int


MOST_ROWS = {3: 4, 5: 2, 7: 2}
"""Of a tile by K: each holds K taps."""
MOST_CELLS = {(3, 1): 14, (3, 2): 14, (5, 1): 14, (5, 2): 14, (7, 1): 4, (7, 2): 3}
"""Accumulators a thread by K and S: what fits MOST_REGISTERS beside the weights, see profiles/kernels-offline.json."""
MOST_STEPS = 4
FEWEST_PROGRAMS = 132 * 12 * 4
"""Four for each warp that an H100 holds at once: fewer steps down are taken where there would be less."""


@functools.lru_cache
def tile(batch: int, channels: int, height: int, width: int, size: int, stride: int) -> Tile:
    """The tile with the fewest instructions a useful output [N, C, H', W'], by count of loads and multiplications."""
    best, least = (1, 1, 32, 16, 1), float("inf")
    for block, lanes in itertools.product((16, 32, 64, 128), (1, 2, 4, 8, 16)):
        warps = lanes * block // CHANNELS_A_THREAD[size] // 32
        for rows, columns in itertools.product((1, 2, 4), range(1, MOST_CELLS[size, stride] + 1)):
            if warps not in (1, 2) or rows * columns > MOST_CELLS[size, stride] or rows > MOST_ROWS[size]:
                continue
            touched = ((rows - 1) * stride + size) * ((columns - 1) * stride + size)
            cost = 5.0 * touched / (rows * columns) + size * size + 9
            for side, by in ((channels, block), (width, lanes * columns), (height, rows)):
                cost *= triton.cdiv(side, by) * by / side
            cost *= 1.04 if block == 16 else 1.0  # 32 bytes of a line of memory
            if cost < least:
                best, least = (rows, columns, lanes, block, warps), cost
    rows, columns, lanes, block, warps = best
    turns = triton.cdiv(height, rows)
    programs = batch * turns * triton.cdiv(width, lanes * columns) * triton.cdiv(channels, block) * warps
    most = max(1, min(MOST_STEPS, programs // FEWEST_PROGRAMS))
    steps = min(range(1, most + 1), key=lambda count: (triton.cdiv(turns, count) * count, -count))
    return Tile(rows, columns, steps, lanes, block, warps)


def forward(
    x: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    stride: int,
    padding: list[int],
    statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y [N, C, H', W'], and its mean and M2 [C]."""
    batch, channels, height, width = x.shape
    size = weight.shape[-1]
    out_height, out_width = (
        (side + 2 * pad - size) // stride + 1 for side, pad in zip((height, width), padding, strict=True)
    )
    y = torch.empty(
        (batch, channels, out_height, out_width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    block = tile(batch, channels, out_height, out_width, size, stride)
    if stride == 2 and x.dtype.itemsize == 4 and small_tiles(x.device):  # 8 bytes of a SiLU would spill on Turing
        block = block._replace(rows=max(1, block.rows // 2))
    strips = triton.cdiv(out_height, block.rows * block.steps)
    tiles = batch * strips * triton.cdiv(out_width, block.lanes * block.columns)
    count, means, m2s = new_partials(tiles if statistics else 1, channels, x.device)
    weights = weight.contiguous() if size == 3 else taps(weight, x.dtype)
    forward_kernel[(tiles * triton.cdiv(channels, block.channels),)](
        x, weights, y, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x), count, means, m2s,
        H=height, W=width, C=channels, OH=out_height, OW=out_width, K=size, S=stride, PH=padding[0], PW=padding[1],
        AFFINE=center is not None, ACT=act, SLOPE=slope, STATISTICS=statistics,
        R=block.rows, CW=block.columns, STEPS=block.steps, BW=block.lanes, BC=block.channels,
        num_warps=block.warps, maxnreg=MOST_REGISTERS[size] if x.dtype.itemsize == 2 else 255,
    )  # fmt: skip
    if not statistics:
        return y, None, None
    return y, *merge(count, means, m2s)


def taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, 1, K, K] as [K · K, C] in the images' dtype."""
    return weight.reshape(weight.shape[0], -1).t().to(dtype).contiguous()
