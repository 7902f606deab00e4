"""Channel shuffle (Zhang et al., 2017, arXiv:1707.01083, figure 1): as an op of its own, and as a relabelling.

out[n, c, h, w] = x[n, (c mod g) · C / g + c div g, h, w]: the channels as a [g, C / g] table, transposed.
"""

import torch
from torch import Tensor

from kernels.prologue import check_images, runs_triton


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """The shuffle as a pass of its own, for use outside fused layers.

    x        [N, C, H, W], any layout; made channels-last
    groups   divides C
    returns  [N, C, H, W] channels-last; the backward pass is the shuffle with C / groups

    Raises ValueError where groups do not divide C. Between fused layers no pass is needed: a per-channel layer
    that follows takes `shuffle_order`'s relabelling of its parameters, and `pointwise_conv2d(shuffle=g)` reads
    its input shuffled. Twin: `shuffle_channels`.
    """
    x = check_images(x)
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    return x if groups in (1, x.shape[1]) else shuffle_op(x, groups)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """The definition, in plain PyTorch."""
    if groups in (1, x.shape[1]):
        return x
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def shuffle_order(channels: int, groups: int, device: torch.device | None = None) -> Tensor:
    """[C] int64 on `device`: shuffled[c] = x[order[c]]. Made there: a copy from the host would be waited for.

    With a per-channel layer f (depthwise, BatchNorm) of parameters p, f(shuffle(x); p) = shuffle(f(x; p')) where
    p'[order[c]] = p[c], that is p' = p[shuffle_order(C, C / groups)].
    """
    return torch.arange(channels, device=device).view(groups, channels // groups).t().reshape(-1)


@torch.library.custom_op("hcr::channel_shuffle", mutates_args=())
def shuffle_op(x: Tensor, groups: int) -> Tensor:
    """`channel_shuffle` on checked arguments with 1 < groups < C."""
    if runs_triton(x) and x.numel():
        from kernels.device.shuffle import forward

        return forward(x, groups)
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(shuffle_channels(x, groups))


@shuffle_op.register_fake
def _(x, groups):
    return torch.empty_like(x, memory_format=torch.channels_last)


def _setup_context(ctx, inputs, output):
    x, groups = inputs
    ctx.back = x.shape[1] // groups


def _backward(ctx, grad):
    return shuffle_op(grad.contiguous(memory_format=torch.channels_last), ctx.back), None


shuffle_op.register_autograd(_backward, setup_context=_setup_context)
