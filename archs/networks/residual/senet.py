"""Squeeze-and-Excitation Networks (Hu et al., 2017, arXiv:1709.01507).

A block's channels are weighed against each other before the residual sum: their means over the map
(squeeze) go through two small layers whose sigmoid scales each channel (excitation), so that what the
whole image shows decides which features count. That adds a tenth to the parameters and almost nothing
to the arithmetic.

Both gate layers have biases, and the squeezed channels are a sixteenth but at least 8, as in timm's
`seresnet*` (whose first stage in SE-ResNet-18 would else have 4). timm's `legacy_seresnet*`, converted
from the authors' Caffe weights, pool the stem without padding and stride in the first 1x1: other networks.
The learning repository's SE-ResNet-18 (11.23 M with 10 classes, ours 11.27 M) has gates without biases after
the stem and after each stage only, and biases in its convolutions.
"""

from collections.abc import Sequence

from torch import nn

from archs.layers import SqueezeExcite
from archs.networks.residual.resnet import RENAMES, BasicBlock, Block, Bottleneck, Residual, ResNet
from archs.registry import Reference, register

PAPER = "Squeeze-and-Excitation Networks, arXiv:1709.01507"
REDUCTION = 16
"""Channels for each squeezed one (the paper's r, section 6.1)."""
LEAST_SQUEEZED = 8


class Excited(Residual):
    """Mixed into a residual block: the branch's output is scaled channel by channel before the sum."""

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        # The block's, which comes next in the order of inheritance.
        super().__init__(in_channels, width, out_channels, stride, groups)  # type: ignore[call-arg]
        self.se = SqueezeExcite(out_channels, max(out_channels // REDUCTION, LEAST_SQUEEZED))

    def layers(self) -> list[nn.Module]:
        return [*super().layers(), self.se]


class SEBasicBlock(Excited, BasicBlock):
    """`BasicBlock` with a gate before the sum."""


class SEBottleneck(Excited, Bottleneck):
    """`Bottleneck` with a gate before the sum."""


def _add(
    name: str,
    source: str,
    block: Block,
    depths: Sequence[int],
    parameters: int,
    multiply_adds: int,
    groups: int = 1,
    group_width: int = 64,
    aliases: tuple[str, ...] = (),
    published: bool = True,
) -> None:
    """Register the ResNet or ResNeXt of that block and depth."""

    @register(
        name,
        aliases=aliases,
        paper=PAPER,
        year=2017,
        image_size=224,
        parameters=parameters,
        multiply_adds=multiply_adds,
        references=(Reference(f"timm:{source}", RENAMES, published=published),),
    )
    def se_resnet(num_classes: int, *, in_channels: int = 3, zero_init_residual: bool = False) -> ResNet:
        return ResNet(
            block,
            depths,
            num_classes,
            in_channels=in_channels,
            groups=groups,
            group_width=group_width,
            zero_init_residual=zero_init_residual,
        )


_add(
    "se_resnet18",
    "seresnet18",
    SEBasicBlock,
    (2, 2, 2, 2),
    parameters=11_779_624,
    multiply_adds=1_814_161_408,
    aliases=("senet",),
    published=False,
)
_add("se_resnet50", "seresnet50", SEBottleneck, (3, 4, 6, 3), parameters=28_088_024, multiply_adds=4_091_699_200)
_add(
    "se_resnext50",
    "seresnext50_32x4d",
    SEBottleneck,
    (3, 4, 6, 3),
    parameters=27_559_896,
    multiply_adds=4_232_994_816,
    groups=32,
    group_width=4,
)
