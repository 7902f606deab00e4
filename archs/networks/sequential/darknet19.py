"""Darknet-19, the classifier of YOLO9000: Better, Faster, Stronger (Redmon and Farhadi, 2016, arXiv:1612.08242).

Mostly 3x3 convolutions that double the channels after every pooling, as in VGG; 1x1 convolutions between
them squeeze to half, as in Network in Network, and a 1x1 to one map a class, averaged, is the head.
BatchNorm follows every convolution but that one. Darknet-53 has the same pairs with a sum around each.
"""

from collections import OrderedDict
from functools import partial

from torch import nn

from archs.layers import ConvNormAct
from archs.networks.residual.darknet53 import SqueezeExpand
from archs.plain import ConvHead, PlainNetwork
from archs.registry import register

STAGES = ((32, 0), (64, 0), (128, 1), (256, 1), (512, 2), (1024, 2))
"""Channels, and pairs of 1x1 and 3x3 convolutions after the first 3x3, between poolings: the paper's table 6."""


@register(
    "darknet19",
    paper="YOLO9000: Better, Faster, Stronger, arXiv:1612.08242",
    year=2016,
    image_size=224,
    minimum_size=32,
    parameters=20_842_376,
    multiply_adds=2_790_989_824,
)
class Darknet19(PlainNetwork):
    """Six stages at 1/1 to 1/32 of the image, of 32 to 1,024 channels.

    negative_slope  of every LeakyReLU; 0.1 is that of the authors' code

    Initialised as the authors' code does, the paper being silent: by fan-in (He et al., 2015, arXiv:1502.01852,
    equation 10), the bias zero.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, negative_slope: float = 0.1) -> None:
        act = partial(nn.LeakyReLU, negative_slope, inplace=True)
        stages, channels = [], in_channels
        for width, pairs in STAGES:
            stage: OrderedDict[str, nn.Module] = OrderedDict(conv=ConvNormAct(channels, width, 3, act=act))
            for pair in range(pairs):
                stage[f"pair{pair}"] = SqueezeExpand(width, act)
            if len(stages) < len(STAGES) - 1:
                stage["pool"] = nn.MaxPool2d(kernel_size=2, stride=2)
            stages.append(nn.Sequential(stage))
            channels = width
        head = ConvHead(channels, num_classes)
        super().__init__(stages[0], stages[1:], head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(head.fc.bias)
