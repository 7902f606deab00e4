"""Darknet-53, the backbone of YOLOv3: An Incremental Improvement (Redmon and Farhadi, 2018, arXiv:1804.02767).

A 3x3 convolution at stride 2 halves the map and doubles the channels; between those, residual blocks
squeeze by a 1x1 and expand by a 3x3. The activation comes before the sum, not after it.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from archs.classifier import Classifier
from archs.fused import Fusable, settle
from archs.layers import ConvNormAct, LinearHead, MakeModule, initialise_fan_out
from archs.registry import Reference, register

DEPTHS = (1, 2, 8, 8, 4)


class SqueezeExpand(Fusable, nn.Sequential):
    """A 1x1 to half the channels, a 3x3 back to all: [N, channels, H, W] -> the same shape."""

    def __init__(self, channels: int, act: MakeModule) -> None:
        conv1 = ConvNormAct(channels, channels // 2, act=act)
        conv2 = ConvNormAct(channels // 2, channels, 3, act=act)
        super().__init__(OrderedDict(conv1=conv1, conv2=conv2))

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            return settle(self.through(self, features))
        return super().forward(features)


class DarkBlock(SqueezeExpand):
    """x + 3x3(1x1(x)): [N, channels, H, W] -> the same shape."""

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            return settle(self.through(self, features), features, residual_after_activation=True)
        # Not in place: LeakyReLU keeps its output for the backward pass.
        return features + super().forward(features)


@register(
    "darknet53",
    paper="YOLOv3: An Incremental Improvement, arXiv:1804.02767",
    year=2018,
    image_size=256,
    parameters=41_609_928,
    multiply_adds=9_285_115_904,
    references=(
        Reference(
            "timm:darknet53",
            (
                (r"^stem\.conv1\.", "stem."),
                (r"\.conv_down\.", ".down."),
                (r"\.blocks\.(\d+)\.", r".block\1."),
            ),
        ),
    ),
)
class Darknet53(Classifier):
    """Five stages at 1/2 to 1/32 of the image, of 64 to 1,024 channels.

    negative_slope  of every LeakyReLU. 0.01, torch's default, is what timm's weights and the learning
                    repository were trained with; the paper's own code has 0.1
    zero_init_last  start every block as the identity, as timm does: the last BatchNorm's weight is zero

    Initialised as timm does: convolutions by fan-out, the linear layer from N(0, 0.01²) with zero bias.
    """

    def __init__(
        self, num_classes: int, *, in_channels: int = 3, negative_slope: float = 0.01, zero_init_last: bool = True
    ) -> None:
        act = partial(nn.LeakyReLU, negative_slope, inplace=True)
        stages, channels = [], 32
        for depth in DEPTHS:
            down = ConvNormAct(channels, 2 * channels, 3, stride=2, act=act)
            channels *= 2
            blocks = {f"block{index}": DarkBlock(channels, act) for index in range(depth)}
            stages.append(nn.Sequential(OrderedDict(down=down, **blocks)))
        head = LinearHead(channels, num_classes)
        super().__init__(ConvNormAct(in_channels, 32, 3, act=act), stages, head)
        initialise_fan_out(self)
        nn.init.normal_(head.fc.weight, std=0.01)
        nn.init.zeros_(head.fc.bias)
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, DarkBlock):
                    nn.init.zeros_(module.conv2.bn.weight)
