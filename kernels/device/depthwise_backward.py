"""Depthwise backward: input gradient and weight gradient in one pass, BatchNorm's backward in its loads and epilogue.

The pass walks the input by tiles of R × CW cells of S × S pixels a thread. A cell (i, j) is reached by the outputs
(i + o, j + p) for a few compile-time o, p, through the tap kh = S · (r - o) + ph + PH (likewise kw), so stride 2 is
specialised by parity and no tap is masked. Each output gradient is loaded and formed once for the whole tile,
dY = dy + c1 + c2 · (y - mean), and feeds dA += dY · w and dw += A · dY. The epilogue turns dA into
dz = act'(z) · dA, stores dx = dz · scale and sums dz and dz · (x - center).

Two channels a thread: K² accumulators of dw, the taps and the tile stay in registers over the whole walk. For K = 7
they do not: `kernels.device.depthwise_backward_by_rows`.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import depthwise_backward_by_rows as by_rows
from kernels.device.depthwise import load_tap
from kernels.device.launch import or_dummy, programs
from kernels.device.partials import finish
from kernels.device.pointwise_math import activate, derivative, load_channels

CHANNELS_A_THREAD = 2
WARPS_A_MULTIPROCESSOR = {3: 16, 5: 8}
"""That hold their registers at once, by K; as many programs of one warp walk the tiles."""


@triton.constexpr_function
def tap_between(pixel, o, p, CW, K, S, PH, PW):
    """The tap kh · K + kw by which output (i + o, j + p) sees a pixel of the tile, or -1.

    Pixels count by cell, then in it: ((r · CW + q) · S + ph) · S + pw is the one at (r · S + ph, q · S + pw).
    """
    cell, ph, pw = pixel // (S * S), pixel // S % S, pixel % S
    kh = S * (cell // CW - o) + ph + PH
    kw = S * (cell % CW - p) + pw + PW
    return kh * K + kw if 0 <= kh < K and 0 <= kw < K else -1


@triton.constexpr_function
def row_in(pixel, CW, S):
    """The pixel's row in its tile."""
    return pixel // (S * S) // CW * S + pixel // S % S


@triton.constexpr_function
def column_in(pixel, CW, S):
    """The pixel's column in its tile."""
    return pixel // (S * S) % CW * S + pixel % S


@triton.jit
def input_and_weight_kernel(
    dy, y, mean, c1, c2, x, center, scale, shift, w, dx, part, N,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATISTICS: tl.constexpr, WEIGHT: tl.constexpr,
    R: tl.constexpr, CW: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Program (walker, channels, which are fastest): tiles walker, walker + walkers, …; dx, and the partial sums."""
    O_FIRST: tl.constexpr = -((K - 1 - PH) // S)
    O_COUNT: tl.constexpr = R - 1 + (S - 1 + PH) // S - O_FIRST + 1
    P_FIRST: tl.constexpr = -((K - 1 - PW) // S)
    P_COUNT: tl.constexpr = CW - 1 + (S - 1 + PW) // S - P_FIRST + 1
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    LINES: tl.constexpr = ((H + S - 1) // S + R - 1) // R
    COLUMNS: tl.constexpr = ((W + S - 1) // S + BW * CW - 1) // (BW * CW)
    LAST_I: tl.constexpr = (LINES - 1) * R
    LAST_J: tl.constexpr = (COLUMNS * BW - 1) * CW
    WHOLE: tl.constexpr = C % BC == 0
    walker = tl.program_id(0) // BLOCKS
    c = tl.program_id(0) % BLOCKS * BC + tl.arange(0, BC)
    real = c < C
    mu = load_channels(center, c, real, AFFINE)
    a = load_channels(scale, c, real, AFFINE)
    b = load_channels(shift, c, real, AFFINE)
    middle = load_channels(mean, c, real, STATISTICS)
    constant = load_channels(c1, c, real, STATISTICS)
    linear = load_channels(c2, c, real, STATISTICS)
    weights = ()
    dw = ()
    for slot in tl.static_range(K * K):
        weights = weights + (load_tap(w, x, c, real, slot, K),)
        dw = dw + (tl.zeros((BW, BC), tl.float32),)
    lanes = tl.zeros((BW, BC), tl.float32)
    lanes_x = tl.zeros((BW, BC), tl.float32)
    lane = tl.arange(0, BW) * CW
    x_lanes = (lane * S)[:, None] * C + c[None, :]
    dy_lanes = lane[:, None] * C + c[None, :]
    index = walker
    while index < N * (LINES * COLUMNS):
        j_tile = (index % COLUMNS) * (BW * CW)
        i = ((index // COLUMNS) % LINES) * R
        n = (index // (COLUMNS * LINES)).to(tl.int64)
        j = j_tile + lane
        x_place = ((n * H + i * S) * W + j_tile * S) * C + x_lanes
        dy_place = ((n * OH + i) * OW + j_tile) * C + dy_lanes
        x_tile = x + x_place
        dx_tile = dx + x_place
        dy_tile = dy + dy_place
        y_tile = y + dy_place
        centred = ()
        activated = ()
        da = ()
        for pixel in tl.static_range(R * CW * S * S):
            line_inside = i * S + row_in(pixel, CW, S) < H
            inside = j * S + column_in(pixel, CW, S) < tl.where(line_inside, W, 0)
            place = (row_in(pixel, CW, S) * W + column_in(pixel, CW, S)) * C
            if LAST_J * S + column_in(pixel, CW, S) >= W or LAST_I * S + row_in(pixel, CW, S) >= H or not WHOLE:
                value = tl.load(x_tile + place, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
            else:
                value = tl.load(x_tile + place).to(tl.float32)
            if AFFINE:
                value = value - mu
            z = value
            if AFFINE:
                z = value * a + b
            z = activate(z, ACT, SLOPE)
            if LAST_J * S + column_in(pixel, CW, S) >= W or LAST_I * S + row_in(pixel, CW, S) >= H:
                z = tl.where(inside[:, None], z, 0.0)
            centred = centred + (value,)
            activated = activated + (z,)
            da = da + (tl.zeros((BW, BC), tl.float32),)
        for o in tl.static_range(O_COUNT):
            oh = i + O_FIRST + o
            line_inside = (oh >= 0) & (oh < OH)
            constant_line = constant
            linear_line = linear
            if STATISTICS and (O_FIRST + o < 0 or LAST_I + O_FIRST + o >= OH):  # nothing leaks in from beyond the edge
                constant_line = tl.where(line_inside, constant, 0.0)
                linear_line = tl.where(line_inside, linear, 0.0)
            for p in tl.static_range(P_COUNT):
                ow = j + P_FIRST + p
                inside = (ow >= 0) & (ow < tl.where(line_inside, OW, 0))
                place = ((O_FIRST + o) * OW + P_FIRST + p) * C
                value = tl.zeros((BW, BC), tl.float32)
                if P_FIRST + p < 0 or LAST_J + P_FIRST + p >= OW:
                    mask = inside[:, None] & real[None, :]
                    gradient = tl.load(dy_tile + place, mask=mask, other=0.0).to(tl.float32)
                    if STATISTICS:
                        value = tl.load(y_tile + place, mask=mask, other=0.0).to(tl.float32)
                elif O_FIRST + o < 0 or LAST_I + O_FIRST + o >= OH or not WHOLE:
                    mask = (c < tl.where(line_inside, C, 0))[None, :]
                    gradient = tl.load(dy_tile + place, mask=mask, other=0.0).to(tl.float32)
                    if STATISTICS:
                        value = tl.load(y_tile + place, mask=mask, other=0.0).to(tl.float32)
                else:
                    gradient = tl.load(dy_tile + place).to(tl.float32)
                    if STATISTICS:
                        value = tl.load(y_tile + place).to(tl.float32)
                if STATISTICS:
                    gradient += constant_line + linear_line * (value - middle)
                    if P_FIRST + p < 0 or LAST_J + P_FIRST + p >= OW:
                        gradient = tl.where(inside[:, None], gradient, 0.0)
                new_da = ()
                for pixel in tl.static_range(R * CW * S * S):
                    total = da[pixel]
                    if tap_between(pixel, O_FIRST + o, P_FIRST + p, CW, K, S, PH, PW) >= 0:
                        total += gradient * weights[tap_between(pixel, O_FIRST + o, P_FIRST + p, CW, K, S, PH, PW)]
                        if WEIGHT:
                            new_dw = ()
                            for slot in tl.static_range(K * K):
                                if tap_between(pixel, O_FIRST + o, P_FIRST + p, CW, K, S, PH, PW) == slot:
                                    new_dw = new_dw + (dw[slot] + activated[pixel] * gradient,)
                                else:
                                    new_dw = new_dw + (dw[slot],)
                            dw = new_dw
                    new_da = new_da + (total,)
                da = new_da
        for pixel in tl.static_range(R * CW * S * S):
            line_inside = i * S + row_in(pixel, CW, S) < H
            inside = j * S + column_in(pixel, CW, S) < tl.where(line_inside, W, 0)
            place = (row_in(pixel, CW, S) * W + column_in(pixel, CW, S)) * C
            dz = da[pixel]
            if ACT != "identity":
                z = centred[pixel]
                if AFFINE:
                    z = z * a + b
                dz = dz * derivative(z, ACT, SLOPE)
            if AFFINE:
                if LAST_J * S + column_in(pixel, CW, S) >= W or LAST_I * S + row_in(pixel, CW, S) >= H:
                    dz = tl.where(inside[:, None], dz, 0.0)
                lanes += dz
                lanes_x += dz * centred[pixel]
                dz = dz * a
            if LAST_J * S + column_in(pixel, CW, S) >= W or LAST_I * S + row_in(pixel, CW, S) >= H or not WHOLE:
                tl.store(dx_tile + place, dz.to(dx.dtype.element_ty), mask=inside[:, None] & real[None, :])
            else:
                tl.store(dx_tile + place, dz.to(dx.dtype.element_ty))
        index += tl.num_programs(0) // BLOCKS
    planes: tl.constexpr = WEIGHT * K * K + 2 * AFFINE
    row = (tl.program_id(0) // BLOCKS).to(tl.int64) * planes
    if WEIGHT:
        for slot in tl.static_range(K * K):
            tl.store(part + (row + slot) * C + c, tl.sum(dw[slot], 0), mask=real)
    if AFFINE:
        tl.store(part + (row + planes - 2) * C + c, tl.sum(lanes, 0), mask=real)
        tl.store(part + (row + planes - 1) * C + c, tl.sum(lanes_x, 0), mask=real)


class Tile(NamedTuple):
    """Block sizes: R × CW cells a thread, BW threads' columns, BC channels."""

    rows: int
    columns: int
    lanes: int
    channels: int


MOST_PIXELS = {3: 8, 5: 4}
"""Pixels a thread by K: what stays in registers three times (value, activated, gradient) beside dw and the taps."""


@functools.lru_cache
def tile(channels: int, height: int, width: int, size: int, stride: int) -> Tile:
    """The tile of one warp with the fewest instructions a pixel, by count of what is loaded and multiplied."""
    best, least = Tile(1, 1, 1, 64), float("inf")
    for block, rows, columns in itertools.product((16, 32, 64), (1, 2, 4), range(1, MOST_PIXELS[size] + 1)):
        pixels = rows * columns * stride * stride
        if pixels > MOST_PIXELS[size]:
            continue
        lanes = 32 * CHANNELS_A_THREAD // block
        reach = (size - 1) // stride
        cost = 7.0 * (rows + reach) * (columns + reach) / pixels + 2 * size * size / stride / stride + 14
        cells = [triton.cdiv(side, stride) for side in (height, width)]
        for side, by in ((channels, block), (cells[0], rows), (cells[1], lanes * columns)):
            cost *= triton.cdiv(side, by) * by / side
        cost *= {16: 1.04, 32: 1.01, 64: 1.0}[block]  # parts of a line of memory
        if cost < least:
            best, least = Tile(rows, columns, lanes, block), cost
    return best


def backward(
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
    stride: int,
    padding: list[int],
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight [C, 1, K, K] in fp32, Σ dz [C], Σ dz · (x - center) [C]; None where not needed."""
    size = weight.shape[-1]
    if size not in WARPS_A_MULTIPROCESSOR:
        return by_rows.backward(
            dy, c1, c2, x, weight, y, mean, center, scale, shift, act, slope, stride, padding, needs_input, needs_weight
        )
    batch, channels, height, width = x.shape
    cut = tile(channels, height, width, size, stride)
    blocks = triton.cdiv(channels, cut.channels)
    cells = [triton.cdiv(side, stride) for side in (height, width)]
    tiles = batch * triton.cdiv(cells[0], cut.rows) * triton.cdiv(cells[1], cut.lanes * cut.columns)
    walkers = max(1, min(tiles, programs(x.device, WARPS_A_MULTIPROCESSOR[size]) // blocks))
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    slots = size * size if needs_weight else 0
    affine = center is not None
    part = torch.empty(walkers, slots + 2 * affine, channels, dtype=torch.float32, device=x.device)
    input_and_weight_kernel[(walkers * blocks,)](
        dy, or_dummy(y, dy), or_dummy(mean, dy), or_dummy(c1, dy), or_dummy(c2, dy),
        x, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x), weight.contiguous(),
        dx, part, batch,
        H=height, W=width, C=channels, OH=dy.shape[2], OW=dy.shape[3], K=size, S=stride, PH=padding[0], PW=padding[1],
        AFFINE=affine, ACT=act, SLOPE=slope, STATISTICS=y is not None, WEIGHT=needs_weight,
        R=cut.rows, CW=cut.columns, BW=cut.lanes, BC=cut.channels, num_warps=1, maxnreg=255,
    )  # fmt: skip
    dw, dz, dz_x = finish(part[:, :slots] if slots else None, part[:, slots:] if affine else None, size * size)
    if not needs_input:
        dx = dz = dz_x = None
    return dx, None if dw is None else dw.view(weight.shape), dz, dz_x
