"""Normalise, add the residual, activate: one pass forward, one pass backward with the sums for BatchNorm.

Memory is [M, C] with M = N · H · W.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import or_dummy, programs, vector_block
from kernels.device.partials import finish
from kernels.device.pointwise_math import activate, derivative, load_channels, normalise

ROWS = 16
FORWARD_STEPS = 4
BACKWARD_STEPS = 4
PROGRAMS = 8
"""Of the backward pass a multiprocessor: as many partial sums are left."""


@triton.jit
def forward_kernel(
    x, center, scale, shift, residual, out, M, C: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, RESIDUAL: tl.constexpr,
    STEPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out = act(z + residual), or act(z) + residual, with z = (x - center) · scale + shift."""
    tile = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mu = load_channels(center, c, c < C, AFFINE)
    a = load_channels(scale, c, c < C, AFFINE)
    b = load_channels(shift, c, c < C, AFFINE)
    for step in tl.static_range(STEPS):
        row = (tile.to(tl.int64) * STEPS + step) * BM + tl.arange(0, BM)
        inside = (row < M)[:, None] & (c < C)[None, :]
        offset = row[:, None] * C + c[None, :]
        z = normalise(tl.load(x + offset, mask=inside, other=0.0).to(tl.float32), mu, a, b, AFFINE)
        if RESIDUAL == "before":
            z += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
        z = activate(z, ACT, SLOPE)
        if RESIDUAL == "after":
            z += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + offset, z.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad, x, center, scale, shift, residual, dx, dresidual, activated, sums, M, C: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, RESIDUAL: tl.constexpr, NEEDS_RESIDUAL: tl.constexpr,
    ACTIVATED: tl.constexpr, STEPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dz = act'(z) · grad; dx = dz · scale; partial sums [walkers, 2, C] of dz and of dz · (x - center).

    Program (walker, channels): runs of STEPS · BM rows walker, walker + walkers, …. dx may be grad: a thread writes
    what it has read. ACTIVATED stores act(z) too.
    """
    tile = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mu = load_channels(center, c, c < C, AFFINE)
    a = load_channels(scale, c, c < C, AFFINE)
    b = load_channels(shift, c, c < C, AFFINE)
    lanes = tl.zeros((BM, BC), tl.float32)
    lanes_x = tl.zeros((BM, BC), tl.float32)
    while tile < tl.cdiv(M, STEPS * BM):
        for step in tl.static_range(STEPS):
            row = (tile.to(tl.int64) * STEPS + step) * BM + tl.arange(0, BM)
            inside = (row < M)[:, None] & (c < C)[None, :]
            offset = row[:, None] * C + c[None, :]
            value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
            z = normalise(value, mu, a, b, AFFINE)
            if RESIDUAL == "before":
                z += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
            dz = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32) * derivative(z, ACT, SLOPE)
            if ACTIVATED:
                tl.store(activated + offset, activate(z, ACT, SLOPE).to(activated.dtype.element_ty), mask=inside)
            if NEEDS_RESIDUAL:
                tl.store(dresidual + offset, dz.to(dresidual.dtype.element_ty), mask=inside)
            direct = dz
            if AFFINE:
                dz = tl.where(inside, dz, 0.0)
                lanes += dz
                lanes_x += dz * (value - mu)
                direct = dz * a
            tl.store(dx + offset, direct.to(dx.dtype.element_ty), mask=inside)
        tile += tl.num_programs(0)
    if AFFINE:
        place = tl.program_id(0).to(tl.int64) * 2 * C + c
        tl.store(sums + place, tl.sum(lanes, 0), mask=c < C)
        tl.store(sums + place + C, tl.sum(lanes_x, 0), mask=c < C)


@triton.jit
def batch_norm_backward_kernel(
    grad, y, mean, c1, c2, out, weight, rounded, M, WEIGHTS, C: tl.constexpr,
    ROUNDED: tl.constexpr, STEPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out = grad + c1 + c2 · (y - mean): the gradient that reaches y through its own statistics, added.

    ROUNDED: the programs behind those write `weight` in the dtype of `rounded`, whose launch is saved."""
    tile = tl.program_id(0)
    tiles = tl.cdiv(M, STEPS * BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    if tile < tiles:
        mu = load_channels(mean, c, c < C, True)
        constant = load_channels(c1, c, c < C, True)
        linear = load_channels(c2, c, c < C, True)
        for step in tl.static_range(STEPS):
            row = (tile.to(tl.int64) * STEPS + step) * BM + tl.arange(0, BM)
            inside = (row < M)[:, None] & (c < C)[None, :]
            offset = row[:, None] * C + c[None, :]
            value = tl.load(y + offset, mask=inside, other=0.0).to(tl.float32)
            total = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32) + constant + linear * (value - mu)
            tl.store(out + offset, total.to(out.dtype.element_ty), mask=inside)
    elif ROUNDED:
        SIZE: tl.constexpr = STEPS * BM * BC
        place = ((tile - tiles) * tl.num_programs(1) + tl.program_id(1)) * SIZE + tl.arange(0, SIZE)
        values = tl.load(weight + place, mask=place < WEIGHTS, other=0.0)
        tl.store(rounded + place, values.to(rounded.dtype.element_ty), mask=place < WEIGHTS)


def _grid(x: Tensor, steps: int) -> tuple[int, int, int, int]:
    """Rows, tiles, channel block, channel blocks."""
    channels = x.shape[1]
    rows = x.numel() // channels
    block = vector_block(channels, x.dtype)
    return rows, triton.cdiv(rows, steps * ROWS), block, triton.cdiv(channels, block)


def forward(
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    place: str,
) -> Tensor:
    """The activation map [N, C, H, W] in x's dtype; `place` of the residual is none, before or after."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    rows, tiles, block, blocks = _grid(x, FORWARD_STEPS)
    forward_kernel[(tiles, blocks)](
        x, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x), or_dummy(residual, x), out, rows, x.shape[1],
        AFFINE=center is not None, ACT=act, SLOPE=slope, RESIDUAL=place, STEPS=FORWARD_STEPS, BM=ROWS, BC=block,
        num_warps=4,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    place: str,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, the residual's gradient where it is not `grad` itself, Σ dz [C], Σ dz · (x - center) [C]."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    needs_residual = place == "before" and act != "identity"
    dresidual = torch.empty_like(dx) if needs_residual else None
    sums = _backward(grad, x, center, scale, shift, residual, act, slope, place, dx, dresidual, None)
    return dx, dresidual, *finish(None, sums)[1:]


def backward_in_place(
    grad: Tensor,
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    activated: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, written over `grad`, Σ dz [C] and Σ dz · (x - center) [C], without a residual.

    activated  as x, gets act(z); None where it is not needed
    """
    sums = _backward(grad, x, center, scale, shift, None, act, slope, "none", grad, None, activated)
    return grad, *finish(None, sums)[1:]


def _backward(grad, x, center, scale, shift, residual, act, slope, place, dx, dresidual, activated) -> Tensor | None:
    """Fill dx, and dresidual and activated where they are; partial sums [walkers, 2, C] where there is an affine."""
    steps = BACKWARD_STEPS if x.dtype.itemsize == 2 else 2  # of fp32 four spill on Turing
    rows, tiles, block, blocks = _grid(x, steps)
    affine = center is not None
    walkers = max(1, min(tiles, programs(x.device, PROGRAMS) // blocks))
    sums = torch.empty((walkers, 2, x.shape[1]), dtype=torch.float32, device=x.device) if affine else None
    backward_kernel[(walkers, blocks)](
        grad, x, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x), or_dummy(residual, x), dx,
        or_dummy(dresidual, dx), or_dummy(activated, dx), or_dummy(sums, x), rows, x.shape[1],
        AFFINE=affine, ACT=act, SLOPE=slope, RESIDUAL=place, NEEDS_RESIDUAL=dresidual is not None,
        ACTIVATED=activated is not None, STEPS=steps, BM=ROWS, BC=block, num_warps=4,
        maxnreg=96 if x.dtype.itemsize == 4 else None,  # left alone, ptxas takes 48 for fp32 on sm_90 and spills
    )  # fmt: skip
    return sums


def batch_norm_backward(
    grad: Tensor, y: Tensor, mean: Tensor, c1: Tensor, c2: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """grad + c1 + c2 · (y - mean) [N, C, H, W] in y's dtype; and `weight`, any shape, dense, in that dtype."""
    out = torch.empty_like(y, memory_format=torch.channels_last)
    rounded = None if weight is None else torch.empty_like(weight, dtype=y.dtype)
    rows, tiles, block, blocks = _grid(y, FORWARD_STEPS)
    weights = 0 if weight is None else weight.numel()
    more = triton.cdiv(weights, FORWARD_STEPS * ROWS * block * blocks)
    batch_norm_backward_kernel[(tiles + more, blocks)](
        grad, y, mean, c1, c2, out, or_dummy(weight, y), or_dummy(rounded, y), rows, weights, y.shape[1],
        ROUNDED=weight is not None, STEPS=FORWARD_STEPS, BM=ROWS, BC=block, num_warps=4,
    )  # fmt: skip
    return out, rounded
