"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019, arXiv:1905.11946).

Depth, width and image size pay best when they grow together. A search finds one small network, B0, of
inverted residuals with squeeze-excite, and a compound coefficient scales all three at once to give B1 to
B7. The multipliers and dropout rates of each are those of the authors' code.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import nn

from archs.classifier import Classifier
from archs.layers import (
    ConvNormAct,
    InvertedResidual,
    LinearHead,
    SqueezeExcite,
    initialise_by_classes,
    initialise_fan_out,
    silu,
    whole_channels,
)
from archs.networks.mobile.mobilenetv2 import TIMM_RENAMES
from archs.registry import Reference, register

PAPER = "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv:1905.11946"

DROP_PATH = 0.2
"""Largest rate of dropped branches: 1 less the paper's survival probability of 0.8 (section 5.2)."""

MBCONV = ("expand", "depthwise", "se", "project")
"""The layers of an MBConv in their order."""

MakeBlock = Callable[..., nn.Module]
"""(in_channels, expansion, out_channels, kernel_size, stride, *, eps, momentum, drop_path) -> a block."""


def mbconv(
    in_channels: int,
    expansion: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    *,
    eps: float,
    momentum: float,
    drop_path: float,
) -> InvertedResidual:
    """An inverted residual whose squeeze-excite has a quarter of the block's input channels."""
    return InvertedResidual(
        in_channels,
        in_channels * expansion,
        out_channels,
        kernel_size,
        stride,
        squeezed=in_channels // 4,
        act=silu,
        eps=eps,
        momentum=momentum,
        drop_path=drop_path,
    )


class Row(NamedTuple):
    """One line of the paper's table: `depth` blocks, the first of which takes the stride."""

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    depth: int
    block: MakeBlock = mbconv


ROWS = (
    Row(1, 3, 1, 16, 1),
    Row(6, 3, 2, 24, 2),
    Row(6, 5, 2, 40, 2),
    Row(6, 3, 2, 80, 3),
    Row(6, 5, 1, 112, 3),
    Row(6, 5, 2, 192, 4),
    Row(6, 3, 1, 320, 1),
)
"""B0: the paper's table 1."""


def torchvision_renames(layers: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """torchvision's key to ours. `layers` names, for each stage, the layers of a block in their order."""

    def each() -> Iterator[tuple[str, str]]:
        last = len(layers)
        for module, ours in ((0, "stem"), (last + 1, f"stages.{last}.0")):
            yield rf"^features\.{module}\.0\.", f"{ours}.conv."
            yield rf"^features\.{module}\.1\.", f"{ours}.bn."
        for stage, names in enumerate(layers):
            for position, name in enumerate(names):
                theirs = rf"^features\.{stage + 1}\.(\d+)\.block\.{position}\."
                yield theirs, rf"stages.{stage}.\1.branch.{name}."
        yield r"\.branch\.(\w+)\.0\.", r".branch.\1.conv."
        yield r"\.branch\.(\w+)\.1\.", r".branch.\1.bn."
        yield r"^classifier\.1\.", "head.fc."

    return tuple(each())


class EfficientNet(Classifier):
    """A 3x3 stem at stride 2, stages of blocks, a 1x1 convolution to last_channels.

    rows           the stages
    stem_channels  after the stem
    dropout        before the linear layer
    drop_path      rate of the dropped branches; it grows linearly over the blocks, from 0 at the first
    eps, momentum  of the BatchNorms

    The papers are silent on the initialisation. As torchvision's: convolutions by fan-out with zero bias, the linear
    layer by the number of classes.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        stem_channels: int,
        last_channels: int,
        num_classes: int,
        *,
        in_channels: int = 3,
        dropout: float = 0.2,
        drop_path: float = DROP_PATH,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        stem = ConvNormAct(in_channels, stem_channels, 3, stride=2, act=silu, eps=eps, momentum=momentum)
        blocks = sum(row.depth for row in rows)
        stages, channels, built = [], stem_channels, 0
        for row in rows:
            stage = nn.Sequential()
            for position in range(row.depth):
                stride = row.stride if position == 0 else 1
                rate = drop_path * built / blocks
                stage.append(
                    row.block(
                        channels,
                        row.expansion,
                        row.channels,
                        row.kernel_size,
                        stride,
                        eps=eps,
                        momentum=momentum,
                        drop_path=rate,
                    )
                )
                channels, built = row.channels, built + 1
            stages.append(stage)
        stages.append(nn.Sequential(ConvNormAct(channels, last_channels, act=silu, eps=eps, momentum=momentum)))
        head = LinearHead(last_channels, num_classes, dropout)
        super().__init__(stem, stages, head)
        initialise_fan_out(self)
        for module in self.modules():
            if isinstance(module, SqueezeExcite):
                nn.init.zeros_(module.fc1.bias)
                nn.init.zeros_(module.fc2.bias)
        initialise_by_classes(head.fc)


class Scale(NamedTuple):
    """One of B0 to B7: the authors' multipliers, and what the network then counts."""

    width: float
    depth: float
    image_size: int
    dropout: float
    parameters: int
    multiply_adds: int


SCALES = {
    "b0": Scale(1.0, 1.0, 224, 0.2, 5_288_548, 385_814_752),
    "b1": Scale(1.0, 1.1, 240, 0.2, 7_794_184, 686_802_832),
    "b2": Scale(1.1, 1.2, 260, 0.3, 9_109_994, 993_561_872),
    "b3": Scale(1.2, 1.4, 300, 0.3, 12_233_232, 1_827_141_392),
    "b4": Scale(1.4, 1.8, 380, 0.4, 19_341_616, 4_393_771_024),
    "b5": Scale(1.6, 2.2, 456, 0.4, 30_389_784, 10_266_384_752),
    "b6": Scale(1.8, 2.6, 528, 0.5, 43_040_704, 19_067_593_536),
    "b7": Scale(2.0, 3.1, 600, 0.5, 66_347_960, 37_745_884_192),
}


def _add(size: str, scale: Scale) -> None:
    """Register one of the family."""
    # torchvision's B5 to B7 have the BatchNorm of the authors' TensorFlow code, and timm's of that name have not.
    large = size >= "b5"
    norm = {"eps": 1e-3, "momentum": 0.01} if large else {}
    renames = torchvision_renames([MBCONV[1:], *[MBCONV] * (len(ROWS) - 1)])
    references = [Reference(f"torchvision:efficientnet_{size}", renames)]
    if not large:
        references.append(Reference(f"timm:efficientnet_{size}", TIMM_RENAMES))

    @register(
        f"efficientnet_{size}",
        paper=PAPER,
        year=2019,
        image_size=scale.image_size,
        parameters=scale.parameters,
        multiply_adds=scale.multiply_adds,
        references=tuple(references),
    )
    def efficientnet(
        num_classes: int, *, in_channels: int = 3, dropout: float = scale.dropout, drop_path: float = DROP_PATH
    ) -> EfficientNet:
        rows = [
            row._replace(channels=whole_channels(row.channels * scale.width), depth=math.ceil(row.depth * scale.depth))
            for row in ROWS
        ]
        return EfficientNet(
            rows,
            whole_channels(32 * scale.width),
            4 * rows[-1].channels,
            num_classes,
            in_channels=in_channels,
            dropout=dropout,
            drop_path=drop_path,
            **norm,
        )


for _size, _scale in SCALES.items():
    _add(_size, _scale)
