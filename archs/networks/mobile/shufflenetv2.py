"""ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design (Ma et al., 2018, arXiv:1807.11164).

Speed is bound by memory traffic more than by multiply-adds, so the unit avoids what is cheap to count and
slow to run: no groups in its 1x1 convolutions, equal channels in and out, no sum. Half of the channels
pass by untouched, the other half are filtered, and a shuffle mixes the halves for the next unit.
"""

from collections import OrderedDict

from torch import Tensor, nn

from archs.classifier import Classifier
from archs.layers import ChannelShuffle, ConvNormAct, LinearHead
from archs.registry import Reference, register

STAGES = ((116, 4), (232, 8), (464, 4))
"""(channels, units) of stages 2, 3 and 4 at 1x (the paper's table 5); the first unit of each has stride 2."""

RENAMES = (
    (r"^conv1\.0\.", "stem.conv.conv."),
    (r"^conv1\.1\.", "stem.conv.bn."),
    *((rf"^stage{stage + 2}\.", f"stages.{stage}.") for stage in range(len(STAGES))),
    (r"^conv5\.0\.", "stages.3.0.conv."),
    (r"^conv5\.1\.", "stages.3.0.bn."),
    (r"\.branch1\.0\.", ".shortcut.depthwise.conv."),
    (r"\.branch1\.1\.", ".shortcut.depthwise.bn."),
    (r"\.branch1\.2\.", ".shortcut.pointwise.conv."),
    (r"\.branch1\.3\.", ".shortcut.pointwise.bn."),
    (r"\.branch2\.0\.", ".branch.expand.conv."),
    (r"\.branch2\.1\.", ".branch.expand.bn."),
    (r"\.branch2\.3\.", ".branch.depthwise.conv."),
    (r"\.branch2\.4\.", ".branch.depthwise.bn."),
    (r"\.branch2\.5\.", ".branch.pointwise.conv."),
    (r"\.branch2\.6\.", ".branch.pointwise.bn."),
    (r"^fc\.", "head.fc."),
)
"""torchvision's key to ours."""


def filtered(in_channels: int, out_channels: int, stride: int) -> OrderedDict[str, nn.Module]:
    """A 3x3 depthwise convolution without activation, then a 1x1: [N, in_channels, H, W] -> [N, out_channels, ...]."""
    return OrderedDict(
        depthwise=ConvNormAct(in_channels, in_channels, 3, stride, groups=in_channels, act=None),
        pointwise=ConvNormAct(in_channels, out_channels),
    )


class Unit(nn.Module):
    """Half of the channels through a branch, the other half as they are: [N, channels, H, W] -> the same shape.

    The paper's figure 3c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        expand = ConvNormAct(half, half)
        self.branch = nn.Sequential(OrderedDict(expand=expand, **filtered(half, half, stride=1)))
        self.shuffle = ChannelShuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        kept, changed = features.chunk(2, dim=1)
        return self.shuffle(kept, self.branch(changed))


class DownUnit(nn.Module):
    """All channels through both paths at stride 2: [N, in_channels, H, W] -> [N, out_channels, H / 2, W / 2].

    The paper's figure 3d.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.shortcut = nn.Sequential(filtered(in_channels, half, stride=2))
        expand = ConvNormAct(in_channels, half)
        self.branch = nn.Sequential(OrderedDict(expand=expand, **filtered(half, half, stride=2)))
        self.shuffle = ChannelShuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        return self.shuffle(self.shortcut(features), self.branch(features))


@register(
    "shufflenetv2_x1_0",
    aliases=("shufflenetv2",),
    paper="ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, arXiv:1807.11164",
    year=2018,
    image_size=224,
    parameters=2_278_604,
    multiply_adds=144_907_992,
    references=(Reference("torchvision:shufflenet_v2_x1_0", RENAMES),),
)
class ShuffleNetV2(Classifier):
    """A 3x3 stem at stride 2, pooling, three stages at 1/8, 1/16 and 1/32 of the image, a 1x1 to 1,024 channels.

    The paper is silent on the initialisation: as torchvision's, which is torch's default.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        channels = 24
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stem = nn.Sequential(OrderedDict(conv=ConvNormAct(in_channels, channels, 3, stride=2), pool=pool))
        stages = []
        for out_channels, units in STAGES:
            stages.append(
                nn.Sequential(DownUnit(channels, out_channels), *(Unit(out_channels) for _ in range(units - 1)))
            )
            channels = out_channels
        stages.append(nn.Sequential(ConvNormAct(channels, 1024)))
        super().__init__(stem, stages, LinearHead(1024, num_classes))
