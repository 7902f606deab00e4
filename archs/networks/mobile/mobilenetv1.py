"""MobileNets (Howard et al., 2017, arXiv:1704.04861).

A convolution filters each channel and mixes channels at once; here a 3x3 depthwise convolution does the
first and a 1x1 convolution the second, for an eighth to a ninth of the multiply-adds. One width
multiplier thins every layer alike and a smaller image thins every map, so one table gives a whole range
of networks. The paper's resolution multiplier is the image size.
"""

from torch import nn

from archs.classifier import Classifier
from archs.layers import (
    ConvNormAct,
    DepthwiseSeparable,
    LinearHead,
    initialise_by_classes,
    initialise_fan_out,
    relu6,
    whole_channels,
)
from archs.registry import Reference, register

PAPER = "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, arXiv:1704.04861"

STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
"""Channels of each depthwise separable convolution (table 1); every stage but the first starts at stride 2."""

RENAMES = (
    (r"^conv_stem\.", "stem.conv."),
    (r"^bn1\.", "stem.bn."),
    (r"^blocks\.", "stages."),
    (r"\.conv_dw\.", ".depthwise.conv."),
    (r"\.bn1\.", ".depthwise.bn."),
    (r"\.conv_pw\.", ".pointwise.conv."),
    (r"\.bn2\.", ".pointwise.bn."),
    (r"^classifier\.", "head.fc."),
)
"""timm's key to ours."""


@register(
    "mobilenetv1",
    paper=PAPER,
    year=2017,
    image_size=224,
    parameters=4_231_976,
    multiply_adds=568_740_352,
    references=(Reference("timm:mobilenetv1_100", RENAMES),),
)
class MobileNetV1(Classifier):
    """A 3x3 stem at stride 2, then 13 depthwise separable convolutions in five stages at 1/2 to 1/32 of the image.

    width  multiplier of all channels, each rounded to a multiple of 8; the paper has 1, 0.75, 0.5 and 0.25

    The topology is timm's, which is that of the authors' code: ReLU6 where the paper says ReLU, and a last
    convolution that keeps the map's size, where the paper's table 1 prints a stride of 2 over a map that stays 7x7.
    The paper is silent on the initialisation. As timm's: convolutions from N(0, 2 / fan-out), the fan-out of a
    depthwise one being its own 9, and the linear layer by the number of classes.

    Raises ValueError for a width that is not above 0.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, width: float = 1.0) -> None:
        if width <= 0:
            raise ValueError(f"a width multiplier is above 0, not {width}")
        channels = whole_channels(32 * width)
        stem = ConvNormAct(in_channels, channels, 3, stride=2, act=relu6)
        stages = []
        for index, row in enumerate(STAGES):
            stage = nn.Sequential()
            for position, table in enumerate(row):
                out_channels = whole_channels(table * width)
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(DepthwiseSeparable(channels, out_channels, stride, act=relu6))
                channels = out_channels
            stages.append(stage)
        head = LinearHead(channels, num_classes)
        super().__init__(stem, stages, head)
        initialise_fan_out(self)
        for module in self.modules():
            if isinstance(module, DepthwiseSeparable):
                nn.init.normal_(module.depthwise.conv.weight, std=(2 / 9) ** 0.5)
        initialise_by_classes(head.fc)


@register("mobilenetv1_075", paper=PAPER, year=2017, image_size=224, parameters=2_585_560, multiply_adds=325_400_448)
def mobilenetv1_075(num_classes: int, *, in_channels: int = 3) -> MobileNetV1:
    """MobileNetV1 of width 0.75."""
    return MobileNetV1(num_classes, in_channels=in_channels, width=0.75)


@register("mobilenetv1_050", paper=PAPER, year=2017, image_size=224, parameters=1_331_592, multiply_adds=149_497_088)
def mobilenetv1_050(num_classes: int, *, in_channels: int = 3) -> MobileNetV1:
    """MobileNetV1 of width 0.5."""
    return MobileNetV1(num_classes, in_channels=in_channels, width=0.5)


@register("mobilenetv1_025", paper=PAPER, year=2017, image_size=224, parameters=470_072, multiply_adds=41_030_272)
def mobilenetv1_025(num_classes: int, *, in_channels: int = 3) -> MobileNetV1:
    """MobileNetV1 of width 0.25."""
    return MobileNetV1(num_classes, in_channels=in_channels, width=0.25)
