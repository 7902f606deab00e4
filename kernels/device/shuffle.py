"""Channel shuffle as a copy: contiguous stores, and loads that are contiguous within each of the g sources."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import vector_block


@triton.jit
def shuffle_kernel(x, out, M, C: tl.constexpr, G, BM: tl.constexpr, BC: tl.constexpr):
    """out[m, c] = x[m, (c mod G) · C / G + c div G]."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    source = (c % G) * (C // G) + c // G
    inside = (row < M)[:, None] & (c < C)[None, :]
    value = tl.load(x + row[:, None] * C + source[None, :], mask=inside)
    tl.store(out + row[:, None] * C + c[None, :], value, mask=inside)


@triton.jit
def interleave_kernel(x, out, M, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """Two groups: both halves in 16-byte loads, interleaved in registers; a program makes 2 · BC channels."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    half = C // 2
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (row < M)[:, None] & (c < half)[None, :]
    source = row[:, None] * C + c[None, :]
    both = tl.interleave(tl.load(x + source, mask=inside), tl.load(x + half + source, mask=inside))
    target = tl.program_id(1) * 2 * BC + tl.arange(0, 2 * BC)
    tl.store(out + row[:, None] * C + target[None, :], both, mask=(row < M)[:, None] & (target < C)[None, :])


@triton.jit
def separate_kernel(x, out, M, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """C / 2 groups, the way back from two: even channels to the first half, odd ones to the second."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    half = C // 2
    source = tl.program_id(1) * 2 * BC + tl.arange(0, 2 * BC)
    value = tl.load(x + row[:, None] * C + source[None, :], mask=(row < M)[:, None] & (source < C)[None, :])
    even, odd = tl.split(tl.reshape(value, (BM, BC, 2)))
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (row < M)[:, None] & (c < half)[None, :]
    target = row[:, None] * C + c[None, :]
    tl.store(out + target, even, mask=inside)
    tl.store(out + half + target, odd, mask=inside)


def forward(x: Tensor, groups: int) -> Tensor:
    """The shuffled copy of [N, C, H, W]."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    channels = x.shape[1]
    rows, lanes = x.numel() // channels, 16
    if 2 in (groups, channels // groups):
        block = vector_block(channels // 2, x.dtype)
        grid = (triton.cdiv(rows, lanes), triton.cdiv(channels // 2, block))
        kernel = interleave_kernel if groups == 2 else separate_kernel
        kernel[grid](x, out, rows, channels, BM=lanes, BC=block, num_warps=4)
    else:
        block = vector_block(channels, x.dtype)
        grid = (triton.cdiv(rows, lanes), triton.cdiv(channels, block))
        shuffle_kernel[grid](x, out, rows, channels, groups, BM=lanes, BC=block, num_warps=4)
    return out
