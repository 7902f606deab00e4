"""The vectors of a squeeze-and-excitation on the device: both layers of an image by one program, fp32 throughout.

Forward one launch, from the pool's partial sums to the gate. Backward two: an image each, from the five sums' partials
to what its pixels need; then channels each, the sums over images. Formulas: `kernels.squeeze_excite`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import channel_block
from kernels.device.pointwise_math import activate, derivative, sigmoid

PARTS = 32
"""Most partial sums of an image that are read at once."""
WEIGHTS_AT_ONCE = 8192
IMAGES = 32


@triton.jit
def total_of(part, n, c, C, TILES, BT: tl.constexpr, BC: tl.constexpr):
    """Σ over an image's tiles of part [N, TILES, C], for channels c [BC]."""
    total = tl.zeros((BC,), tl.float32)
    for first in range(0, TILES, BT):
        t = first + tl.arange(0, BT)
        place = (n * TILES + t)[:, None] * C + c[None, :]
        total += tl.sum(tl.load(part + place, mask=(t < TILES)[:, None] & (c < C)[None, :], other=0.0), 0)
    return total


@triton.jit
def open_gate(value, GATE: tl.constexpr):
    """sigmoid, or hardsigmoid relu6(v + 3) / 6."""
    return sigmoid(value) if GATE == "sigmoid" else activate(value + 3.0, "relu6", 0.0) / 6.0


@triton.jit
def gate_slope(value, GATE: tl.constexpr):
    """d open_gate / dv."""
    if GATE == "sigmoid":
        opened = open_gate(value, GATE)
        slope = opened * (1.0 - opened)
    else:
        slope = derivative(value + 3.0, "relu6", 0.0) / 6.0
    return slope


@triton.jit
def excite_kernel(
    part, first, first_bias, second, second_bias, pooled, hidden, logits, opened, P, TILES,
    C: tl.constexpr, R: tl.constexpr, INNER: tl.constexpr, GATE: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Program n: pooled = Σ part / P [C], hidden = W₁ pooled + b₁ [R], logits = W₂ act(hidden) + b₂ [C], their gate."""
    n = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BR)
    inner = tl.zeros((BR,), tl.float32)
    for block in range((C + BC - 1) // BC):
        c = block * BC + tl.arange(0, BC)
        mean = total_of(part, n, c, C, TILES, BT, BC) / P
        tl.store(pooled + n * C + c, mean, mask=c < C)
        weight = tl.load(first + r[:, None] * C + c[None, :], mask=(r < R)[:, None] & (c < C)[None, :], other=0.0)
        inner += tl.sum(weight * mean[None, :], 1)
    inner += tl.load(first_bias + r, mask=r < R, other=0.0)
    tl.store(hidden + n * R + r, inner, mask=r < R)
    activated = activate(inner, INNER, 0.01)
    for block in range((C + BC - 1) // BC):
        c = block * BC + tl.arange(0, BC)
        weight = tl.load(second + c[:, None] * R + r[None, :], mask=(c < C)[:, None] & (r < R)[None, :], other=0.0)
        value = tl.sum(tl.where((r < R)[None, :], weight * activated[None, :], 0.0), 1)
        value += tl.load(second_bias + c, mask=c < C, other=0.0)
        tl.store(logits + n * C + c, value, mask=c < C)
        tl.store(opened + n * C + c, open_gate(value, GATE), mask=c < C)


@triton.jit
def image_kernel(
    part, first, second, hidden, logits, opened, constant, d_logits, d_hidden, terms, N, P, TILES,
    C: tl.constexpr, R: tl.constexpr, INNER: tl.constexpr, GATE: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Program n: from the parts of the five sums [5, N, TILES, C] the gate, dm / HW, dlogits [C] and dhidden [R].

    terms [2, N, C]: what the image adds to Σ dz and to Σ dz · (x - center).
    """
    n = tl.program_id(0).to(tl.int64)
    plane = tl.cast(N, tl.int64) * TILES * C
    r = tl.arange(0, BR)
    inner = tl.zeros((BR,), tl.float32)
    for block in range((C + BC - 1) // BC):
        c = block * BC + tl.arange(0, BC)
        value = tl.load(logits + n * C + c, mask=c < C, other=0.0)
        steep = total_of(part, n, c, C, TILES, BT, BC) * gate_slope(value, GATE)
        tl.store(opened + n * C + c, open_gate(value, GATE), mask=c < C)
        tl.store(d_logits + n * C + c, steep, mask=c < C)
        weight = tl.load(second + c[:, None] * R + r[None, :], mask=(c < C)[:, None] & (r < R)[None, :], other=0.0)
        inner += tl.sum(tl.where((c < C)[:, None], weight * steep[:, None], 0.0), 0)
    inner *= derivative(tl.load(hidden + n * R + r, mask=r < R, other=0.0), INNER, 0.01)
    tl.store(d_hidden + n * R + r, inner, mask=r < R)
    for block in range((C + BC - 1) // BC):
        c = block * BC + tl.arange(0, BC)
        weight = tl.load(first + r[:, None] * C + c[None, :], mask=(r < R)[:, None] & (c < C)[None, :], other=0.0)
        back = tl.sum(weight * inner[:, None], 0) / P
        gate = open_gate(tl.load(logits + n * C + c, mask=c < C, other=0.0), GATE)
        tl.store(constant + n * C + c, back, mask=c < C)
        dz = gate * total_of(part + plane, n, c, C, TILES, BT, BC)
        dz += back * total_of(part + 3 * plane, n, c, C, TILES, BT, BC)
        dz_x = gate * total_of(part + 2 * plane, n, c, C, TILES, BT, BC)
        dz_x += back * total_of(part + 4 * plane, n, c, C, TILES, BT, BC)
        tl.store(terms + n * C + c, dz, mask=c < C)
        tl.store(terms + tl.cast(N, tl.int64) * C + n * C + c, dz_x, mask=c < C)


@triton.jit
def images_kernel(
    pooled, hidden, d_logits, d_hidden, terms, sum_dz, sum_dz_x, d_first, d_first_bias, d_second, d_second_bias, N,
    C: tl.constexpr, R: tl.constexpr, INNER: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Program, a block of channels: sums over images of `image_kernel`'s terms, and of both layers' gradients."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    r = tl.arange(0, BR)
    dz = tl.zeros((BC,), tl.float32)
    dz_x = tl.zeros((BC,), tl.float32)
    bias = tl.zeros((BC,), tl.float32)
    inner_bias = tl.zeros((BR,), tl.float32)
    first = tl.zeros((BR, BC), tl.float32)
    second = tl.zeros((BC, BR), tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        by_channel = n[:, None] * C + c[None, :]
        by_inner = n[:, None] * R + r[None, :]
        here = (n < N)[:, None] & (c < C)[None, :]
        inside = (n < N)[:, None] & (r < R)[None, :]
        dz += tl.sum(tl.load(terms + by_channel, mask=here, other=0.0), 0)
        dz_x += tl.sum(tl.load(terms + tl.cast(N, tl.int64) * C + by_channel, mask=here, other=0.0), 0)
        outer = tl.load(d_logits + by_channel, mask=here, other=0.0)
        inner = tl.load(d_hidden + by_inner, mask=inside, other=0.0)
        mean = tl.load(pooled + by_channel, mask=here, other=0.0)
        activated = activate(tl.load(hidden + by_inner, mask=inside, other=0.0), INNER, 0.01)
        bias += tl.sum(outer, 0)
        inner_bias += tl.sum(inner, 0)
        first = tl.dot(tl.trans(inner), mean, first, input_precision="ieee")
        second = tl.dot(tl.trans(outer), activated, second, input_precision="ieee")
    tl.store(sum_dz + c, dz, mask=c < C)
    tl.store(sum_dz_x + c, dz_x, mask=c < C)
    tl.store(d_second_bias + c, bias, mask=c < C)
    tl.store(d_first + r[:, None] * C + c[None, :], first, mask=(r < R)[:, None] & (c < C)[None, :])
    tl.store(d_second + c[:, None] * R + r[None, :], second, mask=(c < C)[:, None] & (r < R)[None, :])
    if tl.program_id(0) == 0:
        tl.store(d_first_bias + r, inner_bias, mask=r < R)


def _blocks(channels: int, inner: int, tiles: int) -> dict[str, int]:
    """Of the kernels that have an image a program."""
    block = channel_block(inner, 1 << 16)
    return {
        "BT": min(PARTS, triton.next_power_of_2(tiles)),
        "BC": channel_block(channels, max(16, min(256, WEIGHTS_AT_ONCE // block))),
        "BR": block,
        "num_warps": 8,
    }


def excite(
    part: Tensor,
    pixels: int,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    inner: str,
    gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From `squeeze_excite.pool`'s parts [N, T, C]: pooled [N, C], hidden [N, R], logits [N, C], their gate [N, C]."""
    batch, tiles, channels = part.shape
    pooled, logits, opened = (part.new_empty(batch, channels) for _ in range(3))
    hidden = part.new_empty(batch, len(first))
    excite_kernel[(batch,)](
        part, *(one.contiguous() for one in (first, first_bias, second, second_bias)), pooled, hidden, logits, opened,
        pixels, tiles, C=channels, R=len(first), INNER=inner, GATE=gate, **_blocks(channels, len(first), tiles),
    )  # fmt: skip
    return pooled, hidden, logits, opened


def through_gate(
    part: Tensor,
    first: Tensor,
    second: Tensor,
    inner: str,
    gate: str,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
    pixels: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`kernels.squeeze_excite.through_gate`, from the five sums' parts [5, N, T, C]."""
    _, batch, tiles, channels = part.shape
    width = len(first)
    opened, constant, d_logits = (part.new_empty(batch, channels) for _ in range(3))
    d_hidden, terms = part.new_empty(batch, width), part.new_empty(2, batch, channels)
    shared = {"C": channels, "R": width, "INNER": inner}
    image_kernel[(batch,)](
        part, first.contiguous(), second.contiguous(), hidden, logits, opened, constant, d_logits, d_hidden, terms,
        batch, pixels, tiles, GATE=gate, **shared, **_blocks(channels, width, tiles),
    )  # fmt: skip
    sum_dz, sum_dz_x, second_bias = (part.new_empty(channels) for _ in range(3))
    first_bias, d_first, d_second = part.new_empty(width), part.new_empty(width, channels), part.new_empty(second.shape)
    block = channel_block(channels, 16)
    images_kernel[(triton.cdiv(channels, block),)](
        pooled, hidden, d_logits, d_hidden, terms, sum_dz, sum_dz_x, d_first, first_bias, d_second, second_bias,
        batch, **shared, BN=IMAGES, BC=block, BR=channel_block(width, 1 << 16), num_warps=4,
    )  # fmt: skip
    return opened, constant, sum_dz, sum_dz_x, d_first, first_bias, d_second, second_bias
