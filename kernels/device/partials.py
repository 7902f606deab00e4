"""One launch that sums what the walkers of a backward kernel left, in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64


@triton.jit
def finish_kernel(part, dw, dz, dz_x, T, C: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """Program (plane, channels): Σ over T of part [T, planes, C]; TAPS planes to dw [C, TAPS], two to dz and dz_x."""
    plane = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros((BT, BC), tl.float32)
    first = 0
    while first < T:
        t = first + tl.arange(0, BT)
        row = t.to(tl.int64) * tl.num_programs(0) + plane
        total += tl.load(part + row[:, None] * C + c[None, :], mask=(t < T)[:, None] & (c < C)[None, :], other=0.0)
        first += BT
    found = tl.sum(total, 0)
    if plane < TAPS:
        tl.store(dw + c * TAPS + plane, found, mask=c < C)
    elif plane == TAPS:
        tl.store(dz + c, found, mask=c < C)
    else:
        tl.store(dz_x + c, found, mask=c < C)


def finish(part: Tensor, taps: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dw [C, taps], Σ dz [C] and Σ dz · (x - center) [C] in fp32 from part [T, taps, or taps + 2, or 2, C].

    dw is None for 0 taps, the other two where there are no planes for them.
    """
    walkers, planes, channels = part.shape
    dw = torch.empty(channels, taps, dtype=torch.float32, device=part.device) if taps else None
    sums = [torch.empty(channels, dtype=torch.float32, device=part.device) for _ in range(planes - taps)]
    dz, dz_x = sums or (None, None)
    block = max(16, min(32, triton.next_power_of_2(channels)))
    finish_kernel[(planes, triton.cdiv(channels, block))](
        part, *(part if tensor is None else tensor for tensor in (dw, dz, dz_x)), walkers, channels,
        TAPS=taps, BT=ROWS, BC=block, num_warps=4,
    )  # fmt: skip
    return dw, dz, dz_x
