"""Densely Connected Convolutional Networks (Huang et al., 2016, arXiv:1608.06993).

Every layer sees the maps of all layers before it in its block, joined by channel, and adds a few of its
own: k, the growth rate. Features are never made twice, so that few parameters do. These are the paper's
"BC" networks: a 1x1 convolution to 4k channels before each 3x3 (bottleneck), and half the channels after
each block (compression). BatchNorm and ReLU come before a convolution, not after.

DenseNet-40 is the CIFAR network at L = 40, k = 12. The paper's table 2 prints this depth without the
bottleneck alone (1.0 M) and this growth rate with it at L = 100 (0.8 M); 0.18 M is the count of the learning
repository, whose network is the same.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archs.classifier import Classifier
from archs.layers import LinearHead, relu
from archs.networks.residual.resnet import pooled_stem
from archs.registry import Reference, register

PAPER = "Densely Connected Convolutional Networks, arXiv:1608.06993"
BOTTLENECK = 4
"""Channels between a layer's convolutions, in growth rates (section 3, "Bottleneck layers")."""
COMPRESSION = 0.5
"""Of the channels in a transition (section 3, "Compression")."""

RENAMES = (
    (r"^features\.conv0\.", "stem.conv.conv."),
    (r"^features\.norm0\.", "stem.conv.bn."),
    *((rf"^features\.denseblock{stage + 1}\.dense(layer\d+)\.", rf"stages.{stage}.\1.") for stage in range(4)),
    *((rf"^features\.transition{stage + 1}\.", f"stages.{stage}.transition.") for stage in range(3)),
    (r"^features\.norm5\.", "stages.3.norm.bn."),
    (r"\.norm(\d)\.", r".conv\1.bn."),
    (r"\.(layer\d+)\.conv(\d)\.weight$", r".\1.conv\2.conv.weight"),
    (r"\.transition\.norm\.", ".transition.conv.bn."),
    (r"\.transition\.conv\.weight$", ".transition.conv.conv.weight"),
    (r"^classifier\.", "head.fc."),
)
"""torchvision's key to ours, and timm's, which are the same."""


def norm_act(channels: int) -> OrderedDict[str, nn.Module]:
    """BatchNorm and ReLU by name."""
    return OrderedDict(bn=nn.BatchNorm2d(channels), act=relu())


class NormActConv(nn.Sequential):
    """BatchNorm, ReLU, convolution without bias: [N, in_channels, H, W] -> [N, out_channels, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(OrderedDict(**norm_act(in_channels), conv=conv))


class DenseLayer(nn.Module):
    """Put `growth` new maps behind the given ones: [N, in_channels, H, W] -> [N, in_channels + growth, H, W]."""

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = NormActConv(in_channels, BOTTLENECK * growth)
        self.conv2 = NormActConv(BOTTLENECK * growth, growth, 3)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat((features, self.dropout(self.conv2(self.conv1(features)))), dim=1)


class DenseNet(Classifier):
    """Blocks of dense layers, between every two a transition that halves the map and the channels.

    stem      images -> [N, channels, H', W']
    channels  of the stem's output
    depths    dense layers in each block
    growth    maps that each adds: the paper's k
    dropout   after each 3x3 convolution; the paper's is 0.2 where it does not augment (section 4.2)

    Initialised as torchvision does, after the paper's He et al.: convolutions by fan-in, a zero bias in the linear
    layer.
    """

    def __init__(
        self,
        stem: nn.Module,
        channels: int,
        depths: Sequence[int],
        growth: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        stages = []
        for index, depth in enumerate(depths):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for layer in range(depth):
                stage[f"layer{layer + 1}"] = DenseLayer(channels, growth, dropout)
                channels += growth
            if index < len(depths) - 1:
                halved = int(COMPRESSION * channels)
                pool = nn.AvgPool2d(kernel_size=2)
                stage["transition"] = nn.Sequential(OrderedDict(conv=NormActConv(channels, halved), pool=pool))
                channels = halved
            else:
                stage["norm"] = nn.Sequential(norm_act(channels))
            stages.append(nn.Sequential(stage))
        head = LinearHead(channels, num_classes)
        super().__init__(stem, stages, head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(head.fc.bias)


def cifar_densenet(
    depth: int, growth: int, num_classes: int, *, in_channels: int = 3, dropout: float = 0.0
) -> DenseNet:
    """The paper's DenseNet-BC for 32-pixel images: a 3x3 stem of 2k channels, three blocks (section 3).

    depth  the paper's L: convolutions and the linear layer, with two convolutions in a dense layer

    Raises ValueError for a depth that is not 6n + 4.
    """
    layers, rest = divmod(depth - 4, 6)
    if rest or layers < 1:
        raise ValueError(f"three blocks of n layers have a depth of 6n + 4, such as 40 or 100, not {depth}")
    stem = nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=False)
    return DenseNet(stem, 2 * growth, (layers,) * 3, growth, num_classes, dropout=dropout)


@register(
    "densenet40", paper=PAPER, year=2016, image_size=32, minimum_size=4, parameters=307_792, multiply_adds=72_496_032
)
def densenet40(num_classes: int, *, in_channels: int = 3, dropout: float = 0.0) -> DenseNet:
    """L = 40, k = 12."""
    return cifar_densenet(40, 12, num_classes, in_channels=in_channels, dropout=dropout)


def _add(name: str, depths: Sequence[int], parameters: int, multiply_adds: int) -> None:
    """Register the ImageNet network of those blocks: k = 32 and a pooled 7x7 stem (the paper's table 1)."""

    @register(
        name,
        paper=PAPER,
        year=2016,
        image_size=224,
        minimum_size=29,
        parameters=parameters,
        multiply_adds=multiply_adds,
        references=(Reference(f"torchvision:{name}", RENAMES), Reference(f"timm:{name}", RENAMES)),
    )
    def densenet(num_classes: int, *, in_channels: int = 3, dropout: float = 0.0) -> DenseNet:
        return DenseNet(pooled_stem(in_channels, 64), 64, depths, 32, num_classes, dropout=dropout)


_add("densenet121", (6, 12, 24, 16), parameters=7_978_856, multiply_adds=2_834_161_664)
_add("densenet169", (6, 12, 32, 32), parameters=14_149_480, multiply_adds=3_359_843_328)
_add("densenet201", (6, 12, 48, 32), parameters=20_013_928, multiply_adds=4_291_365_888)
