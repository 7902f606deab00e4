"""The convolutional layers that the networks share.

Parameters keep the standard shapes and the names `conv`, `bn` and `fc`, so that a reference's weights
load by renaming keys alone.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from archs.fused import Excitation, Fusable, Pending, activation, convolve, excited, settle

MakeModule = Callable[[], nn.Module]

# Nothing saves a BatchNorm's output for the backward pass, so the activation may overwrite it: one
# buffer fewer at the peak, and for LeakyReLU one fewer kept until the backward pass.
relu = partial(nn.ReLU, inplace=True)
# Not in place: their backward passes need their input, which autograd would first copy.
relu6 = nn.ReLU6
silu = nn.SiLU


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, without a call where there is nothing to convert, for what an autograd.Function returns.

    torch 2.11's compiler takes a result that is one of the operands, as that of such a call or of one in place, for
    another tensor: the gradient of a function that returns it is zero.
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


class ConvNormAct(Fusable):
    """Convolution, BatchNorm, activation: [N, in_channels, H, W] -> [N, out_channels, H', W'].

    kernel_size    one side, or (height, width)
    padding        None keeps the map's size at stride 1 (half the kernel, which must then be odd)
    bias           of the convolution; the BatchNorm takes it out again, but weights from elsewhere may have one
    eps, momentum  of the BatchNorm; references differ (eps 1e-5 in torch, 1e-3 in Inception)
    act            makes the activation; None leaves it out, as before a residual sum

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
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        act: MakeModule | None = relu,
    ) -> None:
        super().__init__()
        sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if padding is None:
            if any(side % 2 == 0 for side in sides):
                raise ValueError(f"a {sides[0]}x{sides[1]} kernel cannot keep the map's size: give its padding")
            padding = (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, groups=groups, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            return settle(self.leave_open(Pending(features)))
        return self.act(self.bn(self.conv(features)))

    def leave_open(self, pending: Pending) -> Pending:
        return self.through([self.act], convolve(pending, self.conv, self.bn, self.fused, self.taken))


class ConvAct(nn.Module):
    """Convolution with bias, ReLU: the layer of the years before BatchNorm. Arguments as nn.Conv2d's."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.act = relu()

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.conv(features))


class DepthwiseSeparable(Fusable, nn.Sequential):
    """A 3x3 convolution in each channel alone, then a 1x1 across channels, BatchNorm and activation after both.

    Howard et al., 2017, arXiv:1704.04861, figure 3: [N, in_channels, H, W] -> [N, out_channels, H', W'].
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, eps: float = 1e-5, act: MakeModule = relu
    ) -> None:
        super().__init__(
            OrderedDict(
                depthwise=ConvNormAct(in_channels, in_channels, 3, stride, groups=in_channels, eps=eps, act=act),
                pointwise=ConvNormAct(in_channels, out_channels, eps=eps, act=act),
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            return settle(self.through(self, features))
        return super().forward(features)


class SqueezeExcite(Fusable):
    """Scale each channel by a gate computed from the channels' means: [N, channels, H, W] -> the same shape.

    Hu et al., 2017, arXiv:1709.01507, equations 2 to 4: gate = sigmoid(W2 act(W1 mean(x))), with biases.

    squeezed  channels between W1 and W2
    """

    def __init__(self, channels: int, squeezed: int, act: MakeModule = relu) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = act()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        gate = self.fc2(self.act(self.fc1(features.mean((2, 3), keepdim=True)))).sigmoid()
        return features * gate

    def leave_open(self, pending: Pending) -> Pending:
        inner = activation(self.act)
        if inner is None or pending.shuffle > 1:
            return Pending(self(settle(pending)))
        layers = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return excited(pending)._replace(excitation=Excitation(layers, inner[0]))


class DropPath(nn.Module):
    """In training, drop a residual branch for whole images at `rate`, and scale the others by 1 / (1 - rate).

    Stochastic depth (Huang et al., 2016, arXiv:1603.09382), drawn for each image.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a branch is dropped at a rate in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        mask = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(keep)
        return branch * mask.div_(keep)


class SummedBranch(Fusable):
    """A branch, summed with its input where the shapes allow it, without an activation after the sum.

    summed     whether they do: [N, C, H, W] -> [N, C, H, W]
    drop_path  rate at which a summed branch is dropped in training
    """

    def __init__(self, branch: OrderedDict[str, nn.Module], summed: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.branch = nn.Sequential(branch)
        self.summed = summed
        self.drop_path = DropPath(drop_path) if drop_path and summed else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            pending = self.through(self.branch, features)
            if not self.summed or isinstance(self.drop_path, nn.Identity):
                return settle(pending, features if self.summed else None)
            return self.drop_path(settle(pending)).add_(features)
        branch = self.drop_path(self.branch(features))
        # In place: nothing keeps the output of the BatchNorm, SiLU or product that the branch ends in.
        return branch.add_(features) if self.summed else branch


class InvertedResidual(SummedBranch):
    """Expand by a 1x1, filter by a depthwise convolution, project by a linear 1x1; summed with the input.

    Sandler et al., 2018, arXiv:1801.04381, figure 4, with the squeeze-excite of MBConv (Tan and Le, 2019,
    arXiv:1905.11946): [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]. The sum is there where
    the shapes allow it.

    hidden_channels  after the expansion; equal to in_channels there is none
    squeezed         channels inside the squeeze-excite; 0 leaves it out
    drop_path        rate at which the branch is dropped in training
    eps, momentum    of the BatchNorms
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        squeezed: int = 0,
        act: MakeModule = relu6,
        eps: float = 1e-5,
        momentum: float = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        layer = partial(ConvNormAct, eps=eps, momentum=momentum)
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden_channels != in_channels:
            branch["expand"] = layer(in_channels, hidden_channels, act=act)
        branch["depthwise"] = layer(
            hidden_channels, hidden_channels, kernel_size, stride, groups=hidden_channels, act=act
        )
        if squeezed:
            branch["se"] = SqueezeExcite(hidden_channels, squeezed, act)
        branch["project"] = layer(hidden_channels, out_channels, act=None)
        super().__init__(branch, stride == 1 and in_channels == out_channels, drop_path)


class ChannelShuffle(Fusable):
    """Deal the channels of each group over all groups: y[g + groups·i] = x[i + (C / groups)·g], channels of C.

    Zhang et al., 2017, arXiv:1707.01083, section 3.1: [N, C, H, W] -> the same shape, channels-last in memory. The
    groups may also come as one tensor each, [N, C / groups, H, W], not yet joined.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, *features: Tensor) -> Tensor:
        # The one copy writes [N, H, W, C], so that the next convolution finds channels-last.
        if len(features) == 1:
            dealt = rearrange(features[0], "n (g c) h w -> n h w c g", g=self.groups).contiguous()
        else:
            dealt = torch.stack([rearrange(group, "n c h w -> n h w c") for group in features], dim=-1)
        return rearrange(dealt, "n h w c g -> n (c g) h w")

    def leave_open(self, pending: Pending) -> Pending:
        if pending.shuffle > 1:
            return Pending(self(settle(pending)))
        return excited(pending)._replace(shuffle=self.groups)


class Branches(Fusable):
    """Several paths over one input, joined by channel: [N, C, H, W] -> [N, sum of the paths' channels, H', W']."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            return torch.cat([settle(self.through([branch], features)) for branch in self.children()], dim=1)
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


def whole_channels(channels: float, divisor: int = 8) -> int:
    """`channels` to the nearest multiple of `divisor`, at least one and never more than 10 % below.

    The rounding of the MobileNets and EfficientNets under a width multiplier (TensorFlow's models, slim/nets).
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


def initialise_fan_out(model: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / fan-out): He et al., 2015, arXiv:1502.01852, equation 14."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def initialise_by_classes(layer: nn.Linear) -> None:
    """Draw the weight from U(±1 / sqrt(classes)), bias zero: TensorFlow's MobileNets and EfficientNets.

    That is for ImageNet's 1,000 classes and more. With 10 the loss would start at 5 to 7, not at log 10 = 2.3, so that
    fewer classes are drawn as 1,000 are.
    """
    bound = max(layer.out_features, 1000) ** -0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
