"""A small ConvNet with BatchNorm written out: Batch Normalization (Ioffe and Szegedy, 2015, arXiv:1502.03167).

In training each channel is shifted and scaled by the mean and the variance of its own values in the
batch, then by a learned γ and β; the gradient flows through both statistics. In evaluation running
averages stand in, so that an image's logits do not depend on its neighbours. The network around it is
of LeNet-5's kind, three 5x5 convolutions with a 2x2 pooling after each, made wider and with ReLU.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from archs.layers import ConvNormAct, LinearHead, initialise_fan_out
from archs.plain import PlainNetwork
from archs.registry import register

WIDTHS = (32, 64, 128)


class BatchNorm(nn.BatchNorm2d):
    """y = γ (x - E[x]) / sqrt(Var[x] + ε) + β a channel, algorithms 1 and 2: [N, C, H, W] -> the same shape.

    Training takes E and Var from the batch, Var divided by the count, and moves the running averages towards E and
    the unbiased Var; evaluation takes the running averages. Computed in fp32 at least. torch's class holds the
    parameters and the averages, so that what knows a BatchNorm knows this one; the arithmetic is here.

    Raises ValueError in training for one value a channel, whose variance is zero.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum)

    def forward(self, features: Tensor) -> Tensor:
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        if self.training:
            mean = wide.mean((0, 2, 3), keepdim=True)
            centred = wide - mean
            variance = centred.square().mean((0, 2, 3), keepdim=True)
            self.update(mean.detach().flatten(), variance.detach().flatten(), wide.numel() // wide.shape[1])
        else:
            centred = wide - per_channel(self.running_mean)
            variance = per_channel(self.running_var)
        scale = per_channel(self.weight) * torch.rsqrt(variance + self.eps)
        return (centred * scale + per_channel(self.bias)).to(features.dtype)

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running averages towards a batch's statistics of `count` values a channel."""
        if count < 2:
            raise ValueError(f"BatchNorm needs two values a channel to train on, not {count}: enlarge batch or image")
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def per_channel(values: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1]."""
    return values.view(1, -1, 1, 1)


class ConvBatchNorm(ConvNormAct):
    """A ConvNormAct whose BatchNorm is ours."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.bn = BatchNorm(out_channels)


@register(
    "convnet_bn",
    paper="Batch Normalization, arXiv:1502.03167",
    year=2015,
    image_size=32,
    minimum_size=8,
    parameters=387_848,
    multiply_adds=28_800_000,
)
class ConvNetBN(PlainNetwork):
    """Three stages at 1/1, 1/2 and 1/4 of the image, of 32, 64 and 128 channels, then the mean and a linear layer.

    dropout  before the linear layer

    Initialised by fan-out, the linear layer by torch's default, γ one and β zero; the paper is silent.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, dropout: float = 0.0) -> None:
        stages, channels = [], in_channels
        for width in WIDTHS:
            conv, pool = ConvBatchNorm(channels, width, 5), nn.MaxPool2d(kernel_size=2, stride=2)
            stages.append(nn.Sequential(OrderedDict(conv=conv, pool=pool)))
            channels = width
        super().__init__(stages[0], stages[1:], LinearHead(channels, num_classes, dropout))
        initialise_fan_out(self)
