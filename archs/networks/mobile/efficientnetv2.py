"""EfficientNetV2: Smaller Models and Faster Training (Tan and Le, 2021, arXiv:2104.00298).

A depthwise convolution saves multiply-adds but, on the large maps of the first stages, no time. There a
fused block expands by a full 3x3 convolution instead, without squeeze-excite; the later stages keep
MBConv. The networks are trained with images that grow from epoch to epoch, and regularisation with them.
"""

from collections import OrderedDict
from functools import partial
from typing import NamedTuple

from torch import nn

from archs.layers import ConvNormAct, SummedBranch, silu
from archs.networks.mobile.efficientnet import DROP_PATH, MBCONV, EfficientNet, Row, torchvision_renames
from archs.registry import Reference, register

PAPER = "EfficientNetV2: Smaller Models and Faster Training, arXiv:2104.00298"


class FusedMBConv(SummedBranch):
    """A k×k convolution that expands, then a linear 1x1 that projects; one k×k with SiLU where nothing expands.

    The paper's figure 2: [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride], summed with the input
    where the shapes allow it. Arguments as `archs.networks.mobile.efficientnet.mbconv`'s.
    """

    def __init__(
        self,
        in_channels: int,
        expansion: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        eps: float,
        momentum: float,
        drop_path: float,
    ) -> None:
        layer = partial(ConvNormAct, eps=eps, momentum=momentum)
        hidden_channels = in_channels * expansion
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion == 1:
            branch["conv"] = layer(in_channels, out_channels, kernel_size, stride, act=silu)
        else:
            branch["expand"] = layer(in_channels, hidden_channels, kernel_size, stride, act=silu)
            branch["project"] = layer(hidden_channels, out_channels, act=None)
        super().__init__(branch, stride == 1 and in_channels == out_channels, drop_path)


class Size(NamedTuple):
    """One of the family: its stages, the dropout that torchvision gives it, and what the network then counts."""

    rows: tuple[Row, ...]
    image_size: int
    dropout: float
    parameters: int
    multiply_adds: int


SIZES = {
    "s": Size(
        (
            Row(1, 3, 1, 24, 2, FusedMBConv),
            Row(4, 3, 2, 48, 4, FusedMBConv),
            Row(4, 3, 2, 64, 4, FusedMBConv),
            Row(4, 3, 2, 128, 6),
            Row(6, 3, 1, 160, 9),
            Row(6, 3, 2, 256, 15),
        ),
        image_size=384,
        dropout=0.2,
        parameters=21_458_488,
        multiply_adds=8_365_617_152,
    ),
    "m": Size(
        (
            Row(1, 3, 1, 24, 3, FusedMBConv),
            Row(4, 3, 2, 48, 5, FusedMBConv),
            Row(4, 3, 2, 80, 5, FusedMBConv),
            Row(4, 3, 2, 160, 7),
            Row(6, 3, 1, 176, 14),
            Row(6, 3, 2, 304, 18),
            Row(6, 3, 1, 512, 5),
        ),
        image_size=480,
        dropout=0.3,
        parameters=54_139_356,
        multiply_adds=24_582_460_384,
    ),
    "l": Size(
        (
            Row(1, 3, 1, 32, 4, FusedMBConv),
            Row(4, 3, 2, 64, 7, FusedMBConv),
            Row(4, 3, 2, 96, 7, FusedMBConv),
            Row(4, 3, 2, 192, 10),
            Row(6, 3, 1, 224, 19),
            Row(6, 3, 2, 384, 25),
            Row(6, 3, 1, 640, 7),
        ),
        image_size=480,
        dropout=0.4,
        parameters=118_515_272,
        multiply_adds=56_079_699_008,
    ),
}
"""S is the paper's table 4 (its first version prints 272 channels in the last stage, not the authors' code's 256).
The paper gives M and L by their size alone: their stages are those of the authors' code."""


def _add(size: str, variant: Size) -> None:
    """Register one of the family."""
    layers = []
    for row in variant.rows:
        fused = ("conv",) if row.expansion == 1 else ("expand", "project")
        layers.append(fused if row.block is FusedMBConv else MBCONV)

    # Of timm's, the name without a prefix has another eps (1e-5), and `tf_` has TensorFlow's padding.
    @register(
        f"efficientnetv2_{size}",
        paper=PAPER,
        year=2021,
        image_size=variant.image_size,
        parameters=variant.parameters,
        multiply_adds=variant.multiply_adds,
        references=(Reference(f"torchvision:efficientnet_v2_{size}", torchvision_renames(layers)),),
    )
    def efficientnetv2(
        num_classes: int, *, in_channels: int = 3, dropout: float = variant.dropout, drop_path: float = DROP_PATH
    ) -> EfficientNet:
        return EfficientNet(
            variant.rows,
            variant.rows[0].channels,
            1280,
            num_classes,
            in_channels=in_channels,
            dropout=dropout,
            drop_path=drop_path,
            eps=1e-3,
        )


for _size, _variant in SIZES.items():
    _add(_size, _variant)
