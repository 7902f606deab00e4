"""BatchNorm on statistics: what is left of the layer once its two passes over the data live in the convolutions.

Everything here works on [C] vectors, so its cost is that of the launches, which a compiler joins into one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.over_ranks import gather_over_ranks, sum_over_ranks
from kernels.prologue import Prologue, Statistics


def batch_norm(
    statistics: Statistics, gamma: Tensor, beta: Tensor, eps: float, act: str = "identity", slope: float = 0.01
) -> Prologue:
    """The training-mode BatchNorm as the next op's prologue: (y - mean) · γ / √(M2 / count + ε) + β, then act.

    statistics   of y [C], local or merged over ranks
    gamma, beta  [C] fp32

    The gradient reaches y through `statistics`, so nothing else of BatchNorm's backward remains to be done.
    Source: Ioffe and Szegedy, 2015, arXiv:1502.03167, algorithm 1.
    """
    count = (
        torch.as_tensor(statistics.count).clamp(min=1)
        if isinstance(statistics.count, Tensor)
        else max(statistics.count, 1)
    )
    scale = gamma * torch.rsqrt(statistics.m2 / count + eps)
    return Prologue(statistics.mean, scale, beta, act, slope)


def running_batch_norm(
    mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float, act: str = "identity", slope: float = 0.01
) -> Prologue:
    """The evaluation-mode BatchNorm, on running statistics [C]."""
    return Prologue(mean, gamma * torch.rsqrt(variance + eps), beta, act, slope)


@torch.no_grad()
def update_running(statistics: Statistics, mean: Tensor, variance: Tensor, momentum: float) -> None:
    """running ← (1 - momentum) · running + momentum · batch, with the unbiased variance, as torch's BatchNorm.

    In place on fp32 [C] buffers. An empty batch leaves them as they are. Raises ValueError for a batch of one
    value a channel, which has no variance.
    """
    count = statistics.count
    if isinstance(count, Tensor):
        weight = momentum * (count > 0)
        unbiased = statistics.m2 / (count - 1).clamp(min=1)
    else:
        if count == 1:
            raise ValueError("one value a channel has no variance: a larger batch or image is needed in training")
        if count == 0:
            return
        weight, unbiased = momentum, statistics.m2 / (count - 1)
    mean.copy_(mean + weight * (statistics.mean.detach() - mean))
    variance.copy_(variance + weight * (unbiased.detach() - variance))


class _MergeOverRanks(torch.autograd.Function):
    """Mean, M2 and count of all ranks' batches from this one's; backward all-reduces the two sums [2C].

    With mean = Σ nᵢ meanᵢ / n and M2 = Σ M2ᵢ + Σ nᵢ (meanᵢ - mean)²: ∂mean/∂meanᵢ = nᵢ / n, ∂M2/∂M2ᵢ = 1 and
    ∂M2/∂meanᵢ = 2 nᵢ (meanᵢ - mean), because Σ nᵢ (meanᵢ - mean) is 0.
    """

    @staticmethod
    def forward(ctx, mean: Tensor, m2: Tensor, count: Tensor, group: str):
        everyone = gather_over_ranks(torch.cat([count, mean, m2]), group)
        counts, means, m2s = everyone.split([1, mean.numel(), m2.numel()], dim=1)
        merged = merge_statistics(counts, means, m2s)
        ctx.group = group
        ctx.save_for_backward(count, mean, *merged)
        ctx.mark_non_differentiable(merged.count)
        return tuple(merged)

    @staticmethod
    def backward(ctx, dmean: Tensor, dm2: Tensor, _):
        count, local, mean, _, total = ctx.saved_tensors
        dmean, dm2 = sum_over_ranks(torch.cat([dmean, dm2]), ctx.group).chunk(2)
        return dmean * count / total.clamp(min=1) + 2 * dm2 * count * (local - mean), dm2, None, None


def synchronise(statistics: Statistics, group: str) -> Statistics:
    """Statistics of all ranks' batches together (SyncBatchNorm): gathered, then merged in the order of ranks.

    group  name of the ranks' group (kernels.over_ranks)

    Ranks may hold different counts, also none. Works on any device that the group's backend does. The gradient
    is that of the sum of all ranks' losses, as in torch's SyncBatchNorm.
    """
    mean, m2, count = statistics
    own = torch.as_tensor(count, dtype=mean.dtype, device=mean.device).reshape(1)
    return Statistics(*_MergeOverRanks.apply(mean, m2, own, group))


def merge_statistics(counts: Tensor, means: Tensor, m2s: Tensor) -> Statistics:
    """Chan's formula over axis 0: counts [T, 1], means and M2 [T, C] -> Statistics [C].

    mean = Σ nᵢ meanᵢ / n, M2 = Σ M2ᵢ + Σ nᵢ (meanᵢ - mean)². Unlike E[y²] - E[y]² it does not cancel where
    |mean| is far above the deviation. Source: Chan, Golub and LeVeque, 1983, The American Statistician 37(3).
    """
    total = counts.sum()
    mean = (counts * means).sum(0) / total.clamp(min=1)
    m2 = (m2s + counts * (means - mean) ** 2).sum(0)
    return Statistics(mean, m2, total)
