"""ShuffleNet (Zhang et al., 2017, arXiv:1707.01083).

In small networks the 1x1 convolutions cost most, so they run in groups, and the saving buys more channels
at the same cost. Groups alone would never see each other's channels: a shuffle deals them out anew
between the two 1x1 convolutions of a unit. The 3x3 between those is depthwise, over a quarter of the
unit's channels.

The learning repository's "g2" has the same stages but 0.89 M parameters with 10 classes, where ours has
0.94 M: its units at stride 2 narrow to a quarter of their branch's channels, the paper's to a quarter of
the unit's output. Its stem also keeps the image's size.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from archs.classifier import Classifier
from archs.fused import Fusable, settle
from archs.layers import ChannelShuffle, ConvNormAct, LinearHead, initialise_fan_out, relu
from archs.registry import register

PAPER = "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, arXiv:1707.01083"

CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Of stage 2, by the number of groups (table 1); each later stage has twice as many."""
UNITS = (4, 8, 4)
"""In stages 2, 3 and 4; the first of each has stride 2."""


class ShuffleUnit(Fusable):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; joined with the input: the paper's figures 2b and 2c.

    [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]. At stride 1 the join is a sum; at stride 2
    the input, pooled, is put before the branch's channels, which are out_channels - in_channels.

    groups         of both 1x1 convolutions
    narrow_groups  of the first alone; None is groups
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, groups: int, narrow_groups: int | None = None
    ) -> None:
        super().__init__()
        hidden = out_channels // 4
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        branch["narrow"] = ConvNormAct(in_channels, hidden, groups=narrow_groups or groups, act=None)
        if groups > 1:
            branch["shuffle"] = ChannelShuffle(groups)
        # The paper's ReLU is before the shuffle. The two commute, and here it overwrites the shuffle's copy.
        branch["act"] = relu()
        branch["depthwise"] = ConvNormAct(hidden, hidden, 3, stride, groups=hidden, act=None)
        widened = out_channels - in_channels if stride == 2 else out_channels
        branch["widen"] = ConvNormAct(hidden, widened, groups=groups, act=None)
        self.branch = nn.Sequential(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.act = relu()

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off" and self.pool is None:
            return settle(self.through([self.branch, self.act], features), features)
        branch = self.branch(features) if self.fused == "off" else settle(self.through(self.branch, features))
        if self.pool is None:
            return self.act(branch.add_(features))
        return self.act(torch.cat([self.pool(features), branch], dim=1))


def stage_channels(groups: int, width: float) -> int:
    """Channels of stage 2. Raises ValueError where the units' groups do not divide them, naming widths that would do.

    The 1x1 that widens has a quarter of them as input and all of them as output, less the input's at stride 2.
    """
    if width <= 0:
        raise ValueError(f"a width multiplier is above 0, not {width}")
    full, unit = CHANNELS[groups], 4 * groups
    channels = round(full * width)
    if channels % unit or not channels:
        below = channels // unit * unit
        would = " or ".join(f"{near / full:.4g} ({near})" for near in (below, below + unit) if near)
        raise ValueError(
            f"width {width} leaves shufflenet_g{groups} {channels} channels in stage 2; a quarter of them must be "
            f"divisible by {groups} groups: width {would} would do"
        )
    return channels


class ShuffleNet(Classifier):
    """A 3x3 stem at stride 2, pooling, three stages at 1/8, 1/16 and 1/32 of the image.

    groups  of the 1x1 convolutions, 1, 2, 3, 4 or 8; the first of stage 2 has none, its input being narrow
    width   multiplier of all channels. The stem's 24 go up to the next multiple of the groups, so that table 2's
            0.5x and 0.25x exist for 8 groups too

    The paper is silent on the initialisation. As in ResNeXt's code, whose training it follows: convolutions by
    fan-out, a zero bias in the linear layer.

    Raises ValueError for a width that leaves channels which the groups do not divide.
    """

    def __init__(self, groups: int, num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> None:
        out_channels = stage_channels(groups, width)
        channels = math.ceil(round(24 * width, 6) / groups) * groups
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stem = nn.Sequential(OrderedDict(conv=ConvNormAct(in_channels, channels, 3, stride=2), pool=pool))
        stages = []
        for index, units in enumerate(UNITS):
            first = ShuffleUnit(channels, out_channels, 2, groups, narrow_groups=1 if index == 0 else groups)
            rest = (ShuffleUnit(out_channels, out_channels, 1, groups) for _ in range(units - 1))
            stages.append(nn.Sequential(first, *rest))
            channels, out_channels = out_channels, 2 * out_channels
        head = LinearHead(channels, num_classes)
        super().__init__(stem, stages, head)
        initialise_fan_out(self)
        nn.init.zeros_(head.fc.bias)


def _add(groups: int, parameters: int, multiply_adds: int) -> None:
    """Register the network of that many groups."""

    @register(
        f"shufflenet_g{groups}",
        paper=PAPER,
        year=2017,
        image_size=224,
        parameters=parameters,
        multiply_adds=multiply_adds,
    )
    def shufflenet(num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> ShuffleNet:
        return ShuffleNet(groups, num_classes, in_channels=in_channels, width=width)


_add(1, parameters=1_531_936, multiply_adds=143_078_976)
_add(2, parameters=1_733_848, multiply_adds=140_836_512)
_add(3, parameters=1_865_728, multiply_adds=137_460_672)
_add(4, parameters=1_968_344, multiply_adds=134_339_776)
_add(8, parameters=2_434_768, multiply_adds=138_365_952)
