"""Aggregated Residual Transformations for Deep Neural Networks (Xie et al., 2016, arXiv:1611.05431).

A bottleneck whose 3x3 convolution runs in groups sums many narrow transformations; their number, the
cardinality, buys more accuracy than depth or width at the same cost. "50 (32x4d)" is ResNet-50 with
32 groups of 4 channels in its first stage. For CIFAR's 32-pixel images there is a network of 29 layers
with a 3x3 stem and three stages, of which "8x64d" has 8 groups of 64 channels in the first.
"""

from collections.abc import Sequence

from archs.classifier import Classifier
from archs.layers import ConvNormAct, LinearHead, initialise_fan_out
from archs.networks.residual.resnet import RENAMES, Bottleneck, ResNet, residual_stage
from archs.registry import Reference, register

PAPER = "Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"


def _add(
    name: str,
    source: str,
    depths: Sequence[int],
    groups: int,
    group_width: int,
    parameters: int,
    multiply_adds: int,
    aliases: tuple[str, ...] = (),
) -> None:
    """Register the network of that depth, with that cardinality and width of a group in the first stage."""

    @register(
        name,
        aliases=aliases,
        paper=PAPER,
        year=2016,
        image_size=224,
        parameters=parameters,
        multiply_adds=multiply_adds,
        references=(Reference(f"torchvision:{source}", RENAMES), Reference(f"timm:{source}", RENAMES)),
    )
    def resnext(num_classes: int, *, in_channels: int = 3, zero_init_residual: bool = False) -> ResNet:
        return ResNet(
            Bottleneck,
            depths,
            num_classes,
            in_channels=in_channels,
            groups=groups,
            group_width=group_width,
            zero_init_residual=zero_init_residual,
        )


_add(
    "resnext50",
    "resnext50_32x4d",
    (3, 4, 6, 3),
    groups=32,
    group_width=4,
    parameters=25_028_904,
    multiply_adds=4_230_479_872,
    aliases=("resnext",),
)
_add(
    "resnext101_32x8d",
    "resnext101_32x8d",
    (3, 4, 23, 3),
    groups=32,
    group_width=8,
    parameters=88_791_336,
    multiply_adds=16_414_015_488,
)


class ResNeXt29(Classifier):
    """Three stages of three bottlenecks with 256, 512 and 1024 output channels, at 1/1, 1/2 and 1/4 of the image.

    groups       of the 3x3 convolutions: the cardinality
    group_width  channels of a group in the first stage; it doubles with each stage
    stem_kernel  side of the stem's convolution, which has stride 1 and is not pooled

    Initialised by torch's defaults.
    """

    def __init__(
        self, num_classes: int, *, groups: int, group_width: int = 64, stem_kernel: int = 3, in_channels: int = 3
    ) -> None:
        stages, channels = [], 64
        for stage in range(3):
            width, out_channels = group_width * groups << stage, 64 * Bottleneck.expansion << stage
            stages.append(residual_stage(Bottleneck, 3, channels, width, out_channels, 1 if stage == 0 else 2, groups))
            channels = out_channels
        stem = ConvNormAct(in_channels, 64, stem_kernel)
        super().__init__(stem, stages, LinearHead(channels, num_classes))


@register("resnext29_8x64d", paper=PAPER, year=2016, image_size=32, parameters=35_441_448, multiply_adds=5_388_279_808)
def resnext29_8x64d(num_classes: int, *, in_channels: int = 3) -> ResNeXt29:
    """The paper's CIFAR network (section 5.2, table 7), initialised by fan-out as its authors' code does."""
    model = ResNeXt29(num_classes, groups=8, in_channels=in_channels)
    initialise_fan_out(model)
    return model
