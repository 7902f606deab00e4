"""Aggregated Residual Transformations for Deep Neural Networks (Xie et al., 2016, arXiv:1611.05431).

A bottleneck whose 3x3 convolution runs in groups sums many narrow transformations; their number, the
cardinality, buys more accuracy than depth or width at the same cost. "50 (32x4d)" is ResNet-50 with
32 groups of 4 channels in its first stage.
"""

from archs.registry import Reference, register
from archs.resnet import RENAMES, Bottleneck, ResNet

PAPER = "Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"


@register(
    "resnext50",
    aliases=("resnext",),
    paper=PAPER,
    year=2016,
    image_size=224,
    parameters=25_028_904,
    multiply_adds=4_230_479_872,
    references=(Reference("torchvision:resnext50_32x4d", RENAMES),),
)
def resnext50(num_classes: int, *, in_channels: int = 3, zero_init_residual: bool = False) -> ResNet:
    """ResNeXt-50 (32x4d), the paper's table 1."""
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        num_classes,
        in_channels=in_channels,
        groups=32,
        group_width=4,
        zero_init_residual=zero_init_residual,
    )
