"""Depthwise forward: prologue in the load, K × K taps on R output rows at once, statistics in the epilogue.

A program owns one image, BW output columns and BC channels and walks down the rows, R at a time. Each loaded
pixel feeds every one of the R accumulators that it reaches, so a row is loaded (R - 1) · S + K times for R
outputs instead of R · K. For K = 3 all weights stay in registers for the whole walk; for larger K one column
of K at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import or_dummy, vector_block
from kernels.device.pointwise_math import activate, load_channels, merge_lanes, normalise
from kernels.device.statistics import merge, new_partials

WALK = 4


@triton.jit
def add_column(
    rows, column, top_line, top, iw, c, real, mu, a, b, H, W, C: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    R: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Add one column of K taps to the R rows of accumulators; each input line is loaded once for all of them."""
    for line in tl.static_range((R - 1) * S + K):
        ih = top + line
        inside = (iw >= 0) & (iw < tl.where((ih >= 0) & (ih < H), W, 0))
        mask = inside[:, None] & real[None, :]
        place = (line * W + iw)[:, None] * C + c[None, :]
        value = tl.load(top_line + place, mask=mask, other=0.0).to(tl.float32)
        value = activate(normalise(value, mu, a, b, AFFINE), ACT, SLOPE)
        if AFFINE:
            value = tl.where(inside[:, None], value, 0.0)
        updated = ()
        for r in tl.static_range(R):
            total = rows[r]
            if line - r * S >= 0 and line - r * S < K:
                total += value * column[line - r * S].to(tl.float32)[None, :]
            updated = updated + (total,)
        rows = updated
    return rows


@triton.jit
def forward_kernel(
    x, w, y, center, scale, shift, part_count, part_mean, part_m2, H, W, C: tl.constexpr, OH, OW, STRIPS,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATISTICS: tl.constexpr,
    R: tl.constexpr, STEPS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Program (image and strip of R · STEPS rows and BW columns, channels); x [N, H, W, C], w [K · K, C]."""
    pid = tl.program_id(0)
    columns = tl.cdiv(OW, BW)
    ow = (pid % columns) * BW + tl.arange(0, BW)
    strip = (pid // columns) % STRIPS
    n = (pid // (columns * STRIPS)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    real = c < C
    mu = load_channels(center, c, real, AFFINE)
    a = load_channels(scale, c, real, AFFINE)
    b = load_channels(shift, c, real, AFFINE)
    images = x + n * H * W * C
    outputs = y + n * OH * OW * C
    weights = ()
    if K == 3:
        for tap in tl.static_range(K * K):
            weights = weights + (tl.load(w + tap * C + c, mask=real, other=0.0),)
    count = tl.zeros((BW,), tl.float32)
    mean = tl.zeros((BW, BC), tl.float32)
    m2 = tl.zeros((BW, BC), tl.float32)
    step = 0
    while step < STEPS:
        first = (strip * STEPS + step) * R
        rows = ()
        for _row in tl.static_range(R):
            rows = rows + (tl.zeros((BW, BC), tl.float32),)
        top = first * S - PH
        top_line = images + top.to(tl.int64) * W * C
        out_line = outputs + first.to(tl.int64) * OW * C
        if K == 3:
            for kw in tl.static_range(3):
                column = (weights[kw], weights[3 + kw], weights[6 + kw])
                iw = ow * S - PW + kw
                rows = add_column(
                    rows, column, top_line, top, iw, c, real, mu, a, b, H, W, C, K, S, AFFINE, ACT, SLOPE, R, BW, BC
                )
        else:
            for kw in range(K):
                column = ()
                for kh in tl.static_range(K):
                    column = column + (tl.load(w + (kh * K + kw) * C + c, mask=real, other=0.0),)
                iw = ow * S - PW + kw
                rows = add_column(
                    rows, column, top_line, top, iw, c, real, mu, a, b, H, W, C, K, S, AFFINE, ACT, SLOPE, R, BW, BC
                )
        for r in tl.static_range(R):
            oh = first + r
            inside = ow < tl.where(oh < OH, OW, 0)
            rounded = rows[r].to(y.dtype.element_ty)
            place = (r * OW + ow)[:, None] * C + c[None, :]
            tl.store(out_line + place, rounded, mask=inside[:, None] & real[None, :])
            if STATISTICS:
                more = inside.to(tl.float32)
                count += more
                difference = (rounded.to(tl.float32) - mean) * more[:, None]
                mean += difference * (more / tl.maximum(count, 1.0))[:, None]
                m2 += difference * (rounded.to(tl.float32) - mean)
        step += 1
    if STATISTICS:
        total, merged, spread = merge_lanes(count, mean, m2)
        place = pid.to(tl.int64) * C + c
        tl.store(part_mean + place, merged, mask=real)
        tl.store(part_m2 + place, spread, mask=real)
        if tl.program_id(1) == 0:
            tl.store(part_count + pid, total)


class Tile(NamedTuple):
    """Block sizes of a launch: R rows at once, BW columns, BC channels, warps."""

    rows: int
    columns: int
    channels: int
    warps: int


def tile(channels: int, width: int, kernel_size: int, stride: int, dtype: torch.dtype) -> Tile:
    """16 bytes a thread; four rows at once only where they fit the registers (see profiles/kernels-offline.json)."""
    block = vector_block(channels, dtype)
    columns = 8 if width <= 8 else 16
    threads = columns * block * dtype.itemsize // 16
    rows = 4 if dtype.itemsize == 4 and kernel_size == 3 and stride == 1 else 2
    return Tile(rows, columns, block, max(1, threads // 32))


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
    block = tile(channels, out_width, size, stride, x.dtype)
    strips = triton.cdiv(out_height, block.rows * WALK)
    tiles = batch * strips * triton.cdiv(out_width, block.columns)
    count, means, m2s = new_partials(tiles if statistics else 1, channels, x.device)
    # Left to itself ptxas stops at 128 or 168 registers for seven taps a column, and spills 16 bytes.
    limits = {"maxnreg": 255} if size == 7 and x.dtype.itemsize == 2 else {}
    forward_kernel[(tiles, triton.cdiv(channels, block.channels))](
        x, taps(weight, x.dtype), y, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x),
        count, means, m2s, height, width, channels, out_height, out_width, strips,
        K=size, S=stride, PH=padding[0], PW=padding[1], AFFINE=center is not None, ACT=act, SLOPE=slope,
        STATISTICS=statistics, R=block.rows, STEPS=WALK, BW=block.columns, BC=block.channels, num_warps=block.warps,
        **limits,
    )  # fmt: skip
    if not statistics:
        return y, None, None
    return y, *merge(count, means, m2s)


def taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, 1, K, K] as [K · K, C] in the images' dtype."""
    return weight.reshape(weight.shape[0], -1).t().to(dtype).contiguous()
