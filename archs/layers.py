"""The layers that the networks share.

Parameters keep the standard shapes and the names `conv`, `bn` and `fc`, so that a reference's weights
load by renaming keys alone.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

# Nothing saves a BatchNorm's output for the backward pass, so the activation may overwrite it: one
# buffer fewer at the peak, and for LeakyReLU one fewer kept until the backward pass.
relu = partial(nn.ReLU, inplace=True)


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, activation: [N, in_channels, H, W] -> [N, out_channels, H', W'].

    kernel_size  one side, or (height, width)
    padding      None keeps the map's size at stride 1 (half the kernel, which must then be odd)
    eps          of the BatchNorm; references differ (1e-5 in torch, 1e-3 in Inception)
    act          makes the activation; None leaves it out, as before a residual sum

    Raises ValueError for an even kernel without a padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        *,
        eps: float = 1e-5,
        act: Callable[[], nn.Module] | None = relu,
    ) -> None:
        super().__init__()
        sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if padding is None:
            if any(side % 2 == 0 for side in sides):
                raise ValueError(f"a {sides[0]}x{sides[1]} kernel cannot keep the map's size: give its padding")
            padding = (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(features)))


class Branches(nn.Module):
    """Several paths over one input, joined by channel: [N, C, H, W] -> [N, sum of the paths' channels, H', W']."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([branch(features) for branch in self.children()], dim=1)


class LinearHead(nn.Sequential):
    """Global average pooling, dropout where it is asked for, one linear layer: [N, channels, H, W] -> [N, classes]."""

    fc: nn.Linear

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1))
        if dropout:
            layers["dropout"] = nn.Dropout(dropout)
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)


def initialise_fan_out(model: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / fan-out): He et al., 2015, arXiv:1502.01852, equation 14."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
