"""BatchNorm statistics on the device: partial (count, mean, M2) of a tensor, and the merge of partials."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import channel_block
from kernels.device.pointwise_math import merge_lanes

ROWS_A_MERGE = 1024
ROWS_A_PARTIAL = 512


@triton.jit
def merge_kernel(count, mean, m2, out_count, out_mean, out_m2, T, C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """Program (group, channels): BT partials [T, C] become one row of the outputs."""
    group = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    t = group * BT + tl.arange(0, BT)
    inside = (t < T)[:, None] & (c < C)[None, :]
    offset = t.to(tl.int64)[:, None] * C + c[None, :]
    n = tl.load(count + t, mask=t < T, other=0.0)
    total, merged, spread = merge_lanes(
        n, tl.load(mean + offset, mask=inside, other=0.0), tl.load(m2 + offset, mask=inside, other=0.0)
    )
    row = group.to(tl.int64) * C + c
    tl.store(out_mean + row, merged, mask=c < C)
    tl.store(out_m2 + row, spread, mask=c < C)
    if tl.program_id(1) == 0:
        tl.store(out_count + group, total)


@triton.jit
def partial_kernel(x, count, mean, m2, M, C: tl.constexpr, STEPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """Program (tile, channels): STEPS · BM rows of x [M, C] become one partial."""
    tile = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.zeros((BM,), tl.float32)
    lane_mean = tl.zeros((BM, BC), tl.float32)
    lane_m2 = tl.zeros((BM, BC), tl.float32)
    for step in tl.static_range(STEPS):
        row = (tile.to(tl.int64) * STEPS + step) * BM + tl.arange(0, BM)
        inside = (row < M)[:, None] & (c < C)[None, :]
        value = tl.load(x + row[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        more = (row < M).to(tl.float32)
        n += more
        share = more / tl.maximum(n, 1.0)
        difference = (value - lane_mean) * more[:, None]
        lane_mean += difference * share[:, None]
        lane_m2 += difference * (value - lane_mean)
    total, merged, spread = merge_lanes(n, lane_mean, lane_m2)
    offset = tile.to(tl.int64) * C + c
    tl.store(mean + offset, merged, mask=c < C)
    tl.store(m2 + offset, spread, mask=c < C)
    if tl.program_id(1) == 0:
        tl.store(count + tile, total)


def new_partials(tiles: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised counts [tiles], means and M2 [tiles, channels]; three tensors: results may not share memory."""
    count = torch.empty(tiles, dtype=torch.float32, device=device)
    mean = torch.empty(tiles, channels, dtype=torch.float32, device=device)
    return count, mean, torch.empty_like(mean)


def merge(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    """Partials, counts [T] and means and M2 [T, C] in fp32, to the mean [C] and M2 [C] of all, in a fixed order."""
    tiles, channels = mean.shape
    while tiles > 1:
        groups = triton.cdiv(tiles, ROWS_A_MERGE)
        rows = max(16, triton.next_power_of_2(triton.cdiv(tiles, groups)))
        block = channel_block(channels, max(16, min(128, 8192 // rows)))
        new_count, new_mean, new_m2 = new_partials(groups, channels, mean.device)
        merge_kernel[(groups, triton.cdiv(channels, block))](
            count, mean, m2, new_count, new_mean, new_m2, tiles, channels,
            BT=rows, BC=block, num_warps=max(1, min(16, rows * block // 1024)),
        )  # fmt: skip
        count, mean, m2, tiles = new_count, new_mean, new_m2, groups
    return mean.view(channels), m2.view(channels)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 [C] over N, H, W of a channels-last tensor [N, C, H, W] with at least one element."""
    channels = x.shape[1]
    rows = x.numel() // channels
    block, lanes = channel_block(channels, 64), 16
    steps = ROWS_A_PARTIAL // lanes
    tiles = triton.cdiv(rows, ROWS_A_PARTIAL)
    count, mean, m2 = new_partials(tiles, channels, x.device)
    partial_kernel[(tiles, triton.cdiv(channels, block))](
        x, count, mean, m2, rows, channels, STEPS=steps, BM=lanes, BC=block, num_warps=4
    )
    return merge(count, mean, m2)
