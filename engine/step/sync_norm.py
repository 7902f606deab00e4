"""BatchNorm over the images of all ranks, on any device: torch's SyncBatchNorm refuses CPU tensors.

Each rank's count, mean and sum of squared deviations (M2) are gathered and combined as Chan, Golub & LeVeque 1983 do
("Algorithms for computing the sample variance", The American Statistician 37:3), so no difference of large sums is
taken. The backward pass all-reduces two sums a channel (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from archs.layers import converted
from kernels.over_ranks import gather_over_ranks, group_name, sum_over_ranks

TINY = 1e-12
"""Added to a variance before its root where the root is only a way to carry the variance."""


def exact(dtype: torch.dtype) -> torch.dtype:
    """What images of `dtype` have their statistics in: fp32, and fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


@torch.library.custom_op("hcr::mean_and_inverse_deviation", mutates_args=())
def mean_and_inverse_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, 1 / √(variance + TINY)) of each channel of [N, C, ...], [C] in `exact`.

    torch's own operator for it on a GPU has no fake rule: tracing it would allocate the maps (torch 2.15).
    """
    if features.is_cuda:
        return torch.batch_norm_stats(features, TINY)
    # The operator that normalises sums in fp32 whatever the images are; its result is let go.
    ones = features.new_ones(features.shape[1], dtype=exact(features.dtype))  # else 16-bit images get 16-bit statistics
    _, mean, inverse = torch.native_batch_norm(features, ones, None, None, None, True, 0.0, TINY)
    return mean, inverse


@mean_and_inverse_deviation.register_fake
def _(features: Tensor) -> tuple[Tensor, Tensor]:
    channels = features.new_empty(features.shape[1], dtype=exact(features.dtype))
    return channels, torch.empty_like(channels)


def local_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, M2) of each channel of this rank's images [N, C, ...], [C] in `exact`."""
    count = features.numel() // features.shape[1]
    mean, inverse = mean_and_inverse_deviation(features)
    return mean, (inverse.square().reciprocal() - TINY).clamp(min=0) * count


def counted_statistics(features: Tensor, counted: int | None) -> tuple[Tensor, Tensor, int]:
    """(mean, M2, count) of the first `counted` images, all of them for None; zeros for none."""
    images = features if counted is None else features[:counted]
    if not len(images):
        zeros = features.new_zeros(features.shape[1], dtype=exact(features.dtype))
        return zeros, zeros, 0
    return *local_statistics(images), images.numel() // images.shape[1]


def combined(counts: Tensor, means: Tensor, m2s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, M2) over all ranks from counts [R, 1], means and M2 [R, C]."""
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    return count, mean, (m2s + counts * (means - mean).square()).sum(dim=0)


class _SyncNorm(torch.autograd.Function):
    """weight · (x - mean) / √(var + eps) + bias with statistics over all ranks; returns them too."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str, counted: int | None = None
    ):
        mean, m2, count = counted_statistics(features, counted)
        gathered = gather_over_ranks(torch.cat([mean, m2, mean.new_full((1,), float(count))]), group)
        channels = len(mean)
        total, mean, m2 = combined(
            gathered[:, 2 * channels :], gathered[:, :channels], gathered[:, channels : 2 * channels]
        )
        variance = m2 / total
        ctx.save_for_backward(features, weight, mean, variance, total)
        ctx.eps, ctx.group, ctx.counted = eps, group, counted
        output = F.batch_norm(_exact(features), mean, variance, weight, bias, training=False, eps=eps)
        output = converted(output, features.dtype)
        ctx.mark_non_differentiable(mean, variance, total)
        return output, mean, variance, total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor):
        features, weight, mean, variance, total = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        # With given statistics the operator's own backward is this rank's part of all three gradients. A GPU's takes
        # them where the forward's would be, for channels-last images (pytorch's Normalization.cu).
        through, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            _exact(gradient.contiguous(memory_format=_layout(features))),
            _exact(features),
            weight,
            mean,
            variance,
            mean,
            inverse,
            False,
            ctx.eps,
            [ctx.needs_input_grad[0], True, True],
        )
        if through is None:
            return None, of_weight, of_bias, None, None, None
        sums = sum_over_ranks(torch.cat([of_weight, of_bias]).to(exact(of_weight.dtype)), ctx.group)
        all_weight, all_bias = sums.chunk(2)
        # dx = w/σ · (dy - mean(dy) - x̂ · mean(dy · x̂)), x̂ = (x - mean)/σ: a line in x for each channel
        slope = -weight * inverse * all_weight * inverse / total
        level = -weight * inverse * all_bias / total - slope * mean
        shape = (1, -1) + (1,) * (features.ndim - 2)
        # What is not counted is in no statistics, and nothing comes back to it from them.
        through[: ctx.counted].addcmul_(features[: ctx.counted], slope.view(shape)).add_(level.view(shape))
        return through.to(features.dtype), of_weight, of_bias, None, None, None


def _exact(tensor: Tensor) -> Tensor:
    """fp32 or fp64 on a CPU, whose operator folds the mean into a 16-bit offset; a GPU's works in fp32 inside."""
    return tensor if tensor.is_cuda else tensor.to(exact(tensor.dtype))


def _layout(features: Tensor) -> torch.memory_format:
    channels_last = features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


class SyncNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm1d, 2d or 3d whose training statistics are those of all ranks' images. Parameters keep their names.

    images [N, C, ...], fp32 or under autocast 16-bit. Ranks may have different N. Without a process group, with one
    rank, and in evaluation it is BatchNorm.
    """

    group = ""
    """Name of the ranks' group that statistics go over; empty for that of all ranks. See kernels.over_ranks."""
    counted: int | None = None
    """Images from the front that are in the statistics, the others fill up the shape (`counting`); None is all."""

    def exchange_group(self) -> str | None:
        """The group's name; None where this rank is alone. archs.fused asks too, where it has measured statistics."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        return self.group or group_name()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least [N, C], got {tuple(input.shape)}")

    def forward(self, features: Tensor) -> Tensor:
        self._check_input_dim(features)
        group = self.exchange_group()
        if group is None or not self.training:
            return super().forward(features)
        output, mean, variance, total = _SyncNorm.apply(features, self.weight, self.bias, self.eps, group, self.counted)
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean, variance, total)
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Move the running statistics as BatchNorm does, with the unbiased variance."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum: Any = self.momentum
        if momentum is None:
            momentum = 1.0 if self.num_batches_tracked is None else 1.0 / self.num_batches_tracked.float()
        assert self.running_mean is not None and self.running_var is not None
        unbiased = variance * total / (total - 1).clamp(min=1)
        self.running_mean += momentum * (mean - self.running_mean)
        self.running_var += momentum * (unbiased - self.running_var)


@contextmanager
def counting(model: nn.Module, counted: int | None) -> Iterator[None]:
    """Inside, forward and backward passes have the first `counted` images in statistics over ranks; None is all."""
    norms = [] if counted is None else [one for one in model.modules() if isinstance(one, SyncNorm)]
    for norm in norms:
        norm.counted = counted
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = None


def synchronise_norms(model: nn.Module, group: str = "") -> int:
    """Replace every BatchNorm with weights in `model` by a SyncNorm, in place; returns how many there were.

    The modules stay where they are: parameters, buffers, hooks and the state dict's names are untouched.

    group  name of the group that they exchange over (kernels.over_ranks)
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and not isinstance(module, SyncNorm):
            module.__class__ = SyncNorm
            module.group = group
            count += 1
    return count
