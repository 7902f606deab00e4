"""Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan and Zisserman, 2014, arXiv:1409.1556).

Every convolution is 3x3 at stride 1: two of them see as far as one 5x5, three as far as one 7x7, with
fewer weights and more nonlinearities. Five groups of them, each ended by a 2x2 max pooling, get deeper
from configuration A to E, and three linear layers hold most of the weights. The names with `_bn` put a
BatchNorm after every convolution, which the paper predates.

torchvision's weights and timm's load. On images above 224 pixels timm slides the linear layers over the
larger map and averages their outputs; torchvision and we average the map to 7x7 first.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from einops import rearrange
from torch import Tensor, nn

from archs.layers import ConvAct, ConvNormAct, initialise_fan_out
from archs.plain import GridHead, PlainNetwork
from archs.registry import Reference, register

PAPER = "Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556"

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each group."""
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each group by the layers that have weights: the paper's table 1, columns A, B, D and E."""
GRID = 7

COUNTS = {
    # Parameters without and with BatchNorm, multiply-adds of either.
    11: (132_863_336, 132_868_840, 7_609_090_048),
    13: (133_047_848, 133_053_736, 11_308_466_176),
    16: (138_357_544, 138_365_992, 15_470_264_320),
    19: (143_667_240, 143_678_248, 19_632_062_464),
}


class VGG(PlainNetwork):
    """Five groups of 3x3 convolutions at 1/1 to 1/16 of the image, pooled to 7x7.

    depths      convolutions in each group
    batch_norm  after each of them
    dropout     after both hidden linear layers (section 3.1)

    Initialised as torchvision does: convolutions by fan-out, linear layers from N(0, 0.01²), biases zero. The paper's
    own N(0, 0.01²) throughout loses the signal in the deeper ones, which it therefore started from a trained vgg11.
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        groups, channels = [], in_channels
        for depth, width in zip(depths, WIDTHS, strict=True):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for position in range(1, depth + 1):
                if batch_norm:
                    group[f"conv{position}"] = ConvNormAct(channels, width, 3, bias=True)
                else:
                    group[f"conv{position}"] = ConvAct(channels, width, 3, padding=1)
                channels = width
            group["pool"] = nn.MaxPool2d(kernel_size=2, stride=2)
            groups.append(nn.Sequential(group))
        super().__init__(groups[0], groups[1:], GridHead(channels, GRID, num_classes, dropout))
        initialise_fan_out(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.zeros_(module.bias)


def renames(depths: Sequence[int], batch_norm: bool) -> tuple[tuple[str, str], ...]:
    """The libraries' keys to ours: both number all layers of all groups in one row."""
    pairs, number = [], 0
    for group, depth in enumerate(depths):
        for position in range(1, depth + 1):
            ours = f"stages.{group - 1}.conv{position}" if group else f"stem.conv{position}"
            pairs.append((rf"^features\.{number}\.", f"{ours}.conv."))
            if batch_norm:
                pairs.append((rf"^features\.{number + 1}\.", f"{ours}.bn."))
            number += 3 if batch_norm else 2
        number += 1
    linear = (
        (r"^classifier\.0\.", "head.fc1."),
        (r"^classifier\.3\.", "head.fc2."),
        (r"^classifier\.6\.", "head.fc."),
        (r"^pre_logits\.", "head."),
    )
    return (*pairs, *linear)


def flat_convolutions(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's hidden layers, a 7x7 and a 1x1 convolution, as the linear layers that they are on a 7x7 map."""
    hidden = ("pre_logits.fc1.weight", "pre_logits.fc2.weight")
    return dict(state_dict) | {name: rearrange(state_dict[name], "o i h w -> o (i h w)") for name in hidden}


def _register(layers: int, batch_norm: bool) -> None:
    plain, normalised, multiply_adds = COUNTS[layers]
    name, keys = f"vgg{layers}{'_bn' if batch_norm else ''}", renames(DEPTHS[layers], batch_norm)

    @register(
        name,
        paper=PAPER,
        year=2014,
        image_size=224,
        minimum_size=32,
        parameters=normalised if batch_norm else plain,
        multiply_adds=multiply_adds,
        references=(
            Reference(f"torchvision:{name}", keys),
            Reference(f"timm:{name}", keys, flat_convolutions),
        ),
    )
    def vgg(num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> VGG:
        return VGG(DEPTHS[layers], num_classes, in_channels=in_channels, batch_norm=batch_norm, dropout=dropout)


for _layers in DEPTHS:
    for _batch_norm in (False, True):
        _register(_layers, _batch_norm)
