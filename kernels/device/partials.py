"""One launch that sums what the walkers of a backward kernel left, in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 512
"""That a program reads at once: a column of more is a loop."""


@triton.jit
def sum_rows(part, rows, stride, column, inside, BT: tl.constexpr, BN: tl.constexpr):
    """Σ over rows, `stride` elements apart, of these columns [BN]."""
    total = tl.zeros((BT, BN), tl.float32)
    first = 0
    while first < rows:
        row = first + tl.arange(0, BT)
        place = row.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.load(part + place, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        first += BT
    return tl.sum(total, 0)


@triton.jit
def finish_kernel(
    part, sums, dw, dz, dz_x, T, SUMS, N, C: tl.constexpr, STRIDE, SUMS_STRIDE, TAPS: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Program, BN columns: Σ over T of part [T, N], or Σ over SUMS of sums [SUMS, 2 · C].

    dw gets part's columns, for TAPS > 1 as [C, TAPS] from [TAPS, C]; dz and dz_x [C] get the two halves of `sums`.
    """
    blocks = tl.cdiv(N, BN)
    if tl.program_id(0) < blocks:
        column = tl.program_id(0) * BN + tl.arange(0, BN)
        found = sum_rows(part, T, STRIDE, column, column < N, BT, BN)
        place = column if TAPS == 1 else column % C * TAPS + column // C
        tl.store(dw + place, found, mask=column < N)
    else:
        column = (tl.program_id(0) - blocks) * BN + tl.arange(0, BN)
        found = sum_rows(sums, SUMS, SUMS_STRIDE, column, column < 2 * C, BT, BN)
        tl.store(dz + column, found, mask=column < C)
        tl.store(dz_x + column - C, found, mask=(column >= C) & (column < 2 * C))


def finish(
    part: Tensor | None, sums: Tensor | None, taps: int = 1
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dw, Σ dz [C] and Σ dz · (x - center) [C] in fp32, None each where there is nothing to sum.

    part  [T, ...], summed to dw [...]; with taps > 1 [T, taps, C], summed to dw [C, taps]
    sums  [T', 2, C]

    Both may be slices of one tensor: their rows are dense, and any distance apart.
    """
    known = part if part is not None else sums
    if known is None:
        return None, None, None

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=known.device)

    dw = dz = dz_x = None
    columns, channels = 0, 1
    if part is not None:
        shape = part.shape[1:]
        columns, dw = shape.numel(), new(shape[1], taps) if taps > 1 else new(*shape)
        channels = shape[-1]
    if sums is not None:
        channels = sums.shape[-1]
        dz, dz_x = new(channels), new(channels)
    rows = max(0 if tensor is None else len(tensor) for tensor in (part, sums))
    most = max(16, min(MOST_ROWS, triton.next_power_of_2(rows)))
    block = 8192 // most
    programs = triton.cdiv(columns, block) + (0 if sums is None else triton.cdiv(2 * channels, block))
    finish_kernel[(programs,)](
        *(known if tensor is None else tensor for tensor in (part, sums, dw, dz, dz_x)),
        0 if part is None else len(part), 0 if sums is None else len(sums), columns, channels,
        0 if part is None else part.stride(0), 0 if sums is None else sums.stride(0),
        TAPS=taps, BT=most, BN=block, num_warps=4 if most <= 128 else 8,
    )  # fmt: skip
    return dw, dz, dz_x
