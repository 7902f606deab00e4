"""Squeeze-and-excitation on the device: pool, gate, and one backward reduction with five sums a (n, c).

A tile is a run of one image's pixels, so that every partial belongs to one n. Memory is [N, P, C], P = H · W.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import or_dummy, vector_block
from kernels.device.pointwise_math import activate, derivative, load_channels, normalise

ROWS = 16
STEPS = 8


@triton.jit
def pool_kernel(
    x, center, scale, shift, part, P, C: tl.constexpr, TILES,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    STEPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """part [N, TILES, C]: Σ A over the tile's pixels, A = act(z)."""
    tile = tl.program_id(0) % TILES
    n = (tl.program_id(0) // TILES).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mu = load_channels(center, c, c < C, AFFINE)
    a = load_channels(scale, c, c < C, AFFINE)
    b = load_channels(shift, c, c < C, AFFINE)
    lanes = tl.zeros((BP, BC), tl.float32)
    for step in tl.static_range(STEPS):
        pixel = (tile * STEPS + step) * BP + tl.arange(0, BP)
        inside = pixel < P
        place = (n * P + pixel)[:, None] * C + c[None, :]
        value = tl.load(x + place, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        lanes += tl.where(inside[:, None], activate(normalise(value, mu, a, b, AFFINE), ACT, SLOPE), 0.0)
    tl.store(part + tl.program_id(0).to(tl.int64) * C + c, tl.sum(lanes, 0), mask=c < C)


@triton.jit
def gate_kernel(
    x, center, scale, shift, gate, out, P, C: tl.constexpr, TILES,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    STEPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out = A · gate[n, c]."""
    tile = tl.program_id(0) % TILES
    n = (tl.program_id(0) // TILES).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mu = load_channels(center, c, c < C, AFFINE)
    a = load_channels(scale, c, c < C, AFFINE)
    b = load_channels(shift, c, c < C, AFFINE)
    g = load_channels(gate + n * C, c, c < C, True)
    for step in tl.static_range(STEPS):
        pixel = (tile * STEPS + step) * BP + tl.arange(0, BP)
        place = (n * P + pixel)[:, None] * C + c[None, :]
        mask = (pixel < P)[:, None] & (c < C)[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        value = activate(normalise(value, mu, a, b, AFFINE), ACT, SLOPE) * g
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def sums_kernel(
    grad, x, center, scale, shift, part, gate, gated, P, C: tl.constexpr, TILES, PARTS,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATED: tl.constexpr,
    STEPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """part [5, N · TILES, C]: Σ dA·A, Σ dA·act', Σ dA·act'·(x - center), Σ act', Σ act'·(x - center).

    GATED stores A · gate[n, c] too."""
    tile = tl.program_id(0) % TILES
    n = (tl.program_id(0) // TILES).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mu = load_channels(center, c, c < C, AFFINE)
    a = load_channels(scale, c, c < C, AFFINE)
    b = load_channels(shift, c, c < C, AFFINE)
    if GATED:
        g = load_channels(gate + n * C, c, c < C, True)
    s1 = tl.zeros((BP, BC), tl.float32)
    s2 = tl.zeros((BP, BC), tl.float32)
    s3 = tl.zeros((BP, BC), tl.float32)
    s4 = tl.zeros((BP, BC), tl.float32)
    s5 = tl.zeros((BP, BC), tl.float32)
    for pair in range((STEPS + 1) // 2):  # memory is waited for once for two steps
        raws = ()
        grads = ()
        for half in tl.static_range(2):
            pixel = (tile * STEPS + 2 * pair + half) * BP + tl.arange(0, BP)
            inside = (pixel < P) & (2 * pair + half < STEPS)
            mask = inside[:, None] & (c < C)[None, :]
            place = (n * P + pixel)[:, None] * C + c[None, :]
            raws = raws + (tl.load(x + place, mask=mask, other=0.0),)
            grads = grads + (tl.load(grad + place, mask=mask, other=0.0),)
        for half in tl.static_range(2):
            pixel = (tile * STEPS + 2 * pair + half) * BP + tl.arange(0, BP)
            inside = (pixel < P) & (2 * pair + half < STEPS)
            value = raws[half].to(tl.float32)
            da = grads[half].to(tl.float32)
            z = normalise(value, mu, a, b, AFFINE)
            slope = tl.where(inside[:, None], derivative(z, ACT, SLOPE), 0.0)
            centred = value - mu
            activated = activate(z, ACT, SLOPE)
            if GATED:
                place = (n * P + pixel)[:, None] * C + c[None, :]
                mask = inside[:, None] & (c < C)[None, :]
                tl.store(gated + place, (activated * g).to(gated.dtype.element_ty), mask=mask)
            s1 += tl.where(inside[:, None], da * activated, 0.0)
            s2 += da * slope
            s3 += da * slope * centred
            s4 += slope
            s5 += slope * centred
    place = tl.program_id(0).to(tl.int64) * C + c
    plane = tl.cast(PARTS, tl.int64) * C  # a lone part comes as a constant, which has no .to
    tl.store(part + place, tl.sum(s1, 0), mask=c < C)
    tl.store(part + plane + place, tl.sum(s2, 0), mask=c < C)
    tl.store(part + 2 * plane + place, tl.sum(s3, 0), mask=c < C)
    tl.store(part + 3 * plane + place, tl.sum(s4, 0), mask=c < C)
    tl.store(part + 4 * plane + place, tl.sum(s5, 0), mask=c < C)


@triton.jit
def input_kernel(
    grad, x, center, scale, shift, gate, constant, dx, P, C: tl.constexpr, TILES,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    STEPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx = act'(z) · (gate[n, c] · dA + constant[n, c]) · scale."""
    tile = tl.program_id(0) % TILES
    n = (tl.program_id(0) // TILES).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mu = load_channels(center, c, c < C, AFFINE)
    a = load_channels(scale, c, c < C, AFFINE)
    b = load_channels(shift, c, c < C, AFFINE)
    g = load_channels(gate + n * C, c, c < C, True)
    k = load_channels(constant + n * C, c, c < C, True)
    for step in tl.static_range(STEPS):
        pixel = (tile * STEPS + step) * BP + tl.arange(0, BP)
        mask = (pixel < P)[:, None] & (c < C)[None, :]
        place = (n * P + pixel)[:, None] * C + c[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        da = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        dz = (g * da + k) * derivative(normalise(value, mu, a, b, AFFINE), ACT, SLOPE)
        if AFFINE:
            dz = dz * a
        tl.store(dx + place, dz.to(dx.dtype.element_ty), mask=mask)


class _Launch:
    """What the four kernels share: the grid, the prologue and the flags."""

    def __init__(
        self, x: Tensor, center: Tensor | None, scale: Tensor | None, shift: Tensor | None, act: str, slope: float
    ) -> None:
        self.batch, self.channels, height, width = x.shape
        self.pixels = height * width
        block = vector_block(self.channels, x.dtype)
        self.tiles = triton.cdiv(self.pixels, ROWS * STEPS)
        steps = triton.cdiv(triton.cdiv(self.pixels, self.tiles), ROWS)
        self.grid = (self.batch * self.tiles, triton.cdiv(self.channels, block))
        self.inputs = (x, or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x))
        self.sizes = (self.pixels, self.channels, self.tiles)
        self.flags = {
            "AFFINE": center is not None,
            "ACT": act,
            "SLOPE": slope,
            "STEPS": steps,
            "BP": ROWS,
            "BC": block,
            "num_warps": 4,
        }


def pool(
    x: Tensor, center: Tensor | None, scale: Tensor | None, shift: Tensor | None, act: str, slope: float
) -> Tensor:
    """Σ act(z) over each tile of an image's pixels, [N, T, C] fp32."""
    launch = _Launch(x, center, scale, shift, act, slope)
    part = torch.empty(launch.batch, launch.tiles, launch.channels, dtype=torch.float32, device=x.device)
    pool_kernel[launch.grid](*launch.inputs, part, *launch.sizes, **launch.flags)
    return part


def apply_gate(
    x: Tensor, center: Tensor | None, scale: Tensor | None, shift: Tensor | None, act: str, slope: float, gate: Tensor
) -> Tensor:
    """act(z) · gate [N, C] in x's dtype."""
    launch = _Launch(x, center, scale, shift, act, slope)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    gate_kernel[launch.grid](*launch.inputs, gate, out, *launch.sizes, **launch.flags)
    return out


def five_sums(
    grad: Tensor,
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    gate: Tensor | None = None,
    gated: Tensor | None = None,
) -> Tensor:
    """Over each tile of an image's pixels, [5, N, T, C] fp32, in the order of `sums_kernel`.

    With gate [N, C], `gated`, as x, gets act(z) · gate.
    """
    launch = _Launch(x, center, scale, shift, act, slope)
    part = torch.empty(5, launch.batch, launch.tiles, launch.channels, dtype=torch.float32, device=x.device)
    sums_kernel[launch.grid](
        grad, *launch.inputs, part, or_dummy(gate, part), or_dummy(gated, x), *launch.sizes,
        launch.batch * launch.tiles, GATED=gate is not None, **launch.flags,
    )  # fmt: skip
    return part


def input_gradient(
    grad: Tensor,
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    gate: Tensor,
    constant: Tensor,
) -> Tensor:
    """dx [N, C, H, W] in x's dtype; gate and constant [N, C]."""
    launch = _Launch(x, center, scale, shift, act, slope)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    input_kernel[launch.grid](grad, *launch.inputs, gate, constant, dx, *launch.sizes, **launch.flags)
    return dx
