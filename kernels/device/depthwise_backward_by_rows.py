"""Depthwise backward for K = 7, whose 49 taps and their gradients do not fit the registers: two kernels.

`input_kernel` takes the columns of taps in a loop, over tiles of R × BW cells of S × S pixels; `weight_kernel` takes
one row of K to a program. A cell (i, j) is reached by outputs (i + o, j + p) as in `kernels.device.depthwise_backward`.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.depthwise import taps
from kernels.device.launch import or_dummy, programs, vector_block
from kernels.device.partials import finish
from kernels.device.pointwise_math import activate, derivative, load_channels, normalise


@triton.jit
def load_gradient(dy, y, place, inside, mean, c1, c2, c, real, STATISTICS: tl.constexpr):
    """dY at `place`, zero outside: the constant c1 must not leak in from beyond the edge."""
    mask = inside[:, None] & real[None, :]
    gradient = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    if STATISTICS:
        value = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
        value = value - load_channels(mean, c, real, True)
        gradient += load_channels(c1, c, real, True) + load_channels(c2, c, real, True) * value
        gradient = tl.where(inside[:, None], gradient, 0.0)
    return gradient


@triton.constexpr_function
def row_between(pixel, o, K, S, PH):
    """The row kh of taps by which output row i + o sees that pixel, or -1."""
    kh = S * (pixel // (S * S) - o) + (pixel // S) % S + PH
    return kh if 0 <= kh < K else -1


@triton.jit
def load_activated(
    x, place, inside, center, scale, shift, c, real, AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr
):
    """A = act(z) at `place`, zero outside. The channel vectors are read here, not held over the whole tile."""
    mu = load_channels(center, c, real, AFFINE)
    a = load_channels(scale, c, real, AFFINE)
    b = load_channels(shift, c, real, AFFINE)
    mask = inside[:, None] & real[None, :]
    z = normalise(tl.load(x + place, mask=mask, other=0.0).to(tl.float32), mu, a, b, AFFINE)
    return tl.where(inside[:, None], activate(z, ACT, SLOPE), 0.0)


@triton.jit
def store_input_gradient(
    da, lanes, lanes_x, x, dx, place, inside, center, scale, shift, c, real,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """dz = act'(z) · dA; dx = dz · scale; returns the running sums of dz and of dz · (x - center)."""
    mask = inside[:, None] & real[None, :]
    dz = da
    if AFFINE or ACT != "identity":
        mu = load_channels(center, c, real, AFFINE, AGAIN=True)
        a = load_channels(scale, c, real, AFFINE, AGAIN=True)
        b = load_channels(shift, c, real, AFFINE, AGAIN=True)
        value = tl.load(x + place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        dz = dz * derivative(normalise(value, mu, a, b, AFFINE), ACT, SLOPE)
        if AFFINE:
            dz = tl.where(inside[:, None], dz, 0.0)
            lanes += dz
            lanes_x += dz * (value - mu)
            dz = dz * a
    tl.store(dx + place, dz.to(dx.dtype.element_ty), mask=mask)
    return lanes, lanes_x


@triton.jit
def input_kernel(
    dy, y, mean, c1, c2, x, center, scale, shift, w, dx, sums, N, H, W, C: tl.constexpr, OH, OW,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATISTICS: tl.constexpr,
    R: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """As `input_and_weight_kernel` without dw; the columns of taps are a loop, so the code does not grow with K²."""
    O_FIRST: tl.constexpr = -((K - 1 - PH) // S)
    O_COUNT: tl.constexpr = R - 1 + (S - 1 + PH) // S - O_FIRST + 1
    P_FIRST: tl.constexpr = -((K - 1 - PW) // S)
    P_COUNT: tl.constexpr = (S - 1 + PW) // S - P_FIRST + 1
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    real = c < C
    lanes = tl.zeros((BW, BC), tl.float32)
    lanes_x = tl.zeros((BW, BC), tl.float32)
    columns = tl.cdiv(tl.cdiv(W, S), BW)
    lines = tl.cdiv(tl.cdiv(H, S), R)
    index = tl.program_id(0)
    while index < N * lines * columns:
        j = (index % columns) * BW + tl.arange(0, BW)
        i = ((index // columns) % lines) * R
        n = (index // (columns * lines)).to(tl.int64)
        x_tile = x + (n * H + i * S) * W * C
        dx_tile = dx + (n * H + i * S) * W * C
        dy_tile = dy + (n * OH + i) * OW * C
        y_tile = y + (n * OH + i) * OW * C
        da = ()
        for _pixel in tl.static_range(R * S * S):
            da = da + (tl.zeros((BW, BC), tl.float32),)
        for p in range(P_COUNT):
            ow = j + P_FIRST + p
            for o in tl.static_range(O_COUNT):
                oh = i + O_FIRST + o
                inside = (ow >= 0) & (ow < tl.where((oh >= 0) & (oh < OH), OW, 0))
                place = ((O_FIRST + o) * OW + ow)[:, None] * C + c[None, :]
                gradient = load_gradient(dy_tile, y_tile, place, inside, mean, c1, c2, c, real, STATISTICS)
                new_da = ()
                for pixel in tl.static_range(R * S * S):
                    total = da[pixel]
                    if row_between(pixel, O_FIRST + o, K, S, PH) >= 0:
                        kw = pixel % S + PW - S * (P_FIRST + p)
                        offset = (row_between(pixel, O_FIRST + o, K, S, PH) * K + kw) * C
                        known = c < tl.where((kw >= 0) & (kw < K), C, 0)
                        total += gradient * tl.load(w + offset + c, mask=known, other=0.0).to(tl.float32)[None, :]
                    new_da = new_da + (total,)
                da = new_da
        for pixel in tl.static_range(R * S * S):
            h = i * S + pixel // S
            iw = j * S + pixel % S
            inside = iw < tl.where(h < H, W, 0)
            place = (pixel // S * W + iw)[:, None] * C + c[None, :]
            lanes, lanes_x = store_input_gradient(
                da[pixel],
                lanes,
                lanes_x,
                x_tile,
                dx_tile,
                place,
                inside,
                center,
                scale,
                shift,
                c,
                real,
                AFFINE,
                ACT,
                SLOPE,
            )
        index += tl.num_programs(0)
    walker = tl.program_id(0).to(tl.int64)
    if AFFINE:
        tl.store(sums + walker * 2 * C + c, tl.sum(lanes, 0), mask=real)
        tl.store(sums + walker * 2 * C + C + c, tl.sum(lanes_x, 0), mask=real)


@triton.jit
def weight_kernel(
    dy, y, mean, c1, c2, x, center, scale, shift, part_w, N, H, W, C: tl.constexpr, OH, OW,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATISTICS: tl.constexpr,
    BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Program (walker, channels, kh): dw[kh, :] = Σ A[oh · S - PH + kh, ·] · dY[oh, ·] over its output rows."""
    P_FIRST: tl.constexpr = -((K - 1 - PW) // S)
    P_COUNT: tl.constexpr = (S - 1 + PW) // S - P_FIRST + 1
    kh = tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    real = c < C
    dw = ()
    for _kw in tl.static_range(K):
        dw = dw + (tl.zeros((BW, BC), tl.float32),)
    columns = tl.cdiv(tl.cdiv(W, S), BW)
    index = tl.program_id(0)
    while index < N * OH * columns:
        j = (index % columns) * BW + tl.arange(0, BW)
        oh = (index // columns) % OH
        n = (index // (columns * OH)).to(tl.int64)
        h = oh * S - PH + kh
        x_line = x + (n * H + h) * W * C
        dy_line = dy + (n * OH + oh) * OW * C
        y_line = y + (n * OH + oh) * OW * C
        width = tl.where((h >= 0) & (h < H), W, 0)
        activated = ()
        for pw in tl.static_range(S):
            iw = j * S + pw
            inside = iw < width
            place = iw[:, None] * C + c[None, :]
            activated = activated + (
                load_activated(x_line, place, inside, center, scale, shift, c, real, AFFINE, ACT, SLOPE),
            )
        for p in tl.static_range(P_COUNT):
            ow = j + P_FIRST + p
            inside = (ow >= 0) & (ow < OW)
            place = ow[:, None] * C + c[None, :]
            gradient = load_gradient(dy_line, y_line, place, inside, mean, c1, c2, c, real, STATISTICS)
            updated = ()
            for kw in tl.static_range(K):
                total = dw[kw]
                for pw in tl.static_range(S):
                    if S * (-P_FIRST - p) + pw + PW == kw:
                        total += activated[pw] * gradient
                updated = updated + (total,)
            dw = updated
        index += tl.num_programs(0)
    walker = tl.program_id(0).to(tl.int64)
    for kw in tl.static_range(K):
        tl.store(part_w + (walker * K * K + kh * K + kw) * C + c, tl.sum(dw[kw], 0), mask=real)


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
    batch, channels, height, width = x.shape
    size = weight.shape[-1]
    block = vector_block(channels, x.dtype)
    cells = triton.cdiv(width, stride)
    columns = 8 if cells <= 8 else 16
    warps = max(1, columns * block * x.dtype.itemsize // 512)
    blocks = triton.cdiv(channels, block)
    sizes = (batch, height, width, channels, *dy.shape[2:])
    flags = {"AFFINE": center is not None, "ACT": act, "SLOPE": slope, "STATISTICS": y is not None}
    gradients = (dy, or_dummy(y, dy), or_dummy(mean, dy), or_dummy(c1, dy), or_dummy(c2, dy))
    prologue = (or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x))
    shape = {"K": size, "S": stride, "PH": padding[0], "PW": padding[1], "BW": columns, "BC": block, "num_warps": warps}
    dx = part_w = sums = None
    new = partial(torch.empty, dtype=torch.float32, device=x.device)
    walkers = max(1, programs(x.device, 4) // blocks)
    if needs_input:
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        sums = None if center is None else new(walkers, 2, channels)
        input_kernel[(walkers, blocks)](
            *gradients, x, *prologue, taps(weight, x.dtype), dx, or_dummy(sums, x), *sizes,
            **flags, **shape, R=2 if stride == 1 else 1, maxnreg=255,
        )  # fmt: skip
    if needs_weight:
        part_w = new(walkers, size * size, channels)
        weight_kernel[(walkers, blocks, size)](*gradients, x, *prologue, part_w, *sizes, **flags, **shape)
    dw, dz, dz_x = finish(part_w, sums, size * size)
    return dx, None if dw is None else dw.view(weight.shape), dz, dz_x
