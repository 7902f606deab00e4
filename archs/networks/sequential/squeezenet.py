"""SqueezeNet: AlexNet-level accuracy with 50x fewer parameters (Iandola et al., 2016, arXiv:1602.07360).

A fire module squeezes to few channels by a 1x1 convolution, then expands by 1x1 and 3x3 filters side by
side: most filters are small, and the large ones see few channels. Pooling comes late, so that the maps
stay large; the last convolution makes one map a class. Version 1.1, from the authors' repository, has a
smaller stem and pools earlier: 2.4 times less work for the same accuracy.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from archs.layers import ConvAct, relu
from archs.plain import ConvHead, PlainNetwork
from archs.registry import Reference, register

PAPER = "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size, arXiv:1602.07360"

FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Channels squeezed to, and of each expansion: the paper's table 1, fire2 to fire9."""
STEMS = {"1.0": (96, 7), "1.1": (64, 3)}
"""Channels and side of the first convolution."""
STAGES = {"1.0": (3, 4, 1), "1.1": (2, 2, 4)}
"""Fire modules between poolings."""


class Fire(nn.Module):
    """Squeeze by a 1x1, expand by a 1x1 and a 3x3: [N, in_channels, H, W] -> [N, 2 · expanded, H, W]."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = ConvAct(in_channels, squeezed)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.act = relu()

    def forward(self, features: Tensor) -> Tensor:
        squeezed = self.squeeze(features)
        # One ReLU over the joined maps: the next layer keeps them anyway, and the two parts are then not kept.
        return self.act(torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1))


def pool() -> nn.MaxPool2d:
    """3x3 at stride 2, the size rounded up."""
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


class SqueezeNet(PlainNetwork):
    """A convolution at stride 2 without padding, eight fire modules in three stages at 1/4, 1/8 and 1/16 of the image.

    version  "1.0", the paper's, or "1.1"
    dropout  before the last convolution

    Initialised as torchvision does: uniformly by fan-in, the last convolution from N(0, 0.01²), biases zero. But the
    last biases are one: a shift of all logits changes nothing, and keeps the ReLU behind them open. From zero the maps
    of some classes are soon negative everywhere, and nothing brings them back.
    """

    def __init__(self, version: str, num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> None:
        channels, kernel_size = STEMS[version]
        stem = nn.Sequential(OrderedDict(conv=ConvAct(in_channels, channels, kernel_size, stride=2), pool=pool()))
        stages, fires = [], iter(enumerate(FIRES, 2))
        for depth in STAGES[version]:
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for _ in range(depth):
                number, (squeezed, expanded) = next(fires)
                stage[f"fire{number}"] = Fire(channels, squeezed, expanded)
                channels = 2 * expanded
            if len(stages) < 2:
                stage["pool"] = pool()
            stages.append(nn.Sequential(stage))
        head = ConvHead(channels, num_classes, dropout, rectified=True)
        super().__init__(stem, stages, head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(head.fc.weight, std=0.01)
        nn.init.ones_(head.fc.bias)


def renames(version: str) -> tuple[tuple[str, str], ...]:
    """torchvision's keys to ours: it numbers the stem's two layers, its ReLU, the fire modules and the poolings."""
    pairs = [(r"^features\.0\.", "stem.conv.conv."), (r"^classifier\.1\.", "head.fc.")]
    number, fire = 3, 2
    for stage, depth in enumerate(STAGES[version]):
        for _ in range(depth):
            pairs.append((rf"^features\.{number}\.", f"stages.{stage}.fire{fire}."))
            number, fire = number + 1, fire + 1
        number += 1
    return (*pairs, (r"\.squeeze\.", ".squeeze.conv."))


@register(
    "squeezenet1_0",
    paper=PAPER,
    year=2016,
    image_size=224,
    minimum_size=21,
    parameters=1_248_424,
    multiply_adds=818_924_576,
    references=(Reference("torchvision:squeezenet1_0", renames("1.0")),),
)
def squeezenet1_0(num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> SqueezeNet:
    """The paper's table 1."""
    return SqueezeNet("1.0", num_classes, in_channels=in_channels, dropout=dropout)


@register(
    "squeezenet1_1",
    paper=PAPER,
    year=2016,
    image_size=224,
    minimum_size=17,
    parameters=1_235_496,
    multiply_adds=349_151_936,
    references=(Reference("torchvision:squeezenet1_1", renames("1.1")),),
)
def squeezenet1_1(num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> SqueezeNet:
    """The smaller stem, and the poolings two fire modules earlier."""
    return SqueezeNet("1.1", num_classes, in_channels=in_channels, dropout=dropout)
