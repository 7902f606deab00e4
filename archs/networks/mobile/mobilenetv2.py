"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018, arXiv:1801.04381).

A residual block turned inside out: the thin ends carry the sum and the wide middle, six times as many
channels, is filtered by a depthwise convolution, so that the map that must be kept is small. No
activation follows the projection, because a ReLU over few channels loses what they hold.
"""

from typing import NamedTuple

from torch import nn

from archs.classifier import Classifier
from archs.layers import ConvNormAct, InvertedResidual, LinearHead, initialise_fan_out, relu6, whole_channels
from archs.registry import Reference, register


class Row(NamedTuple):
    """One line of the paper's table 2: `depth` blocks, the first of which takes the stride."""

    expansion: int
    channels: int
    depth: int
    stride: int


ROWS = (
    Row(1, 16, 1, 1),
    Row(6, 24, 2, 2),
    Row(6, 32, 3, 2),
    Row(6, 64, 4, 2),
    Row(6, 96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)

TIMM_RENAMES = (
    (r"^conv_stem\.", "stem.conv."),
    (r"^bn1\.", "stem.bn."),
    (r"^conv_head\.", "stages.7.0.conv."),
    (r"^bn2\.", "stages.7.0.bn."),
    (r"^classifier\.", "head.fc."),
    (r"^blocks\.(\d+\.\d+)\.", r"stages.\1.branch."),
    # The first stage expands nothing: its 1x1 is the projection.
    (r"^(stages\.0\.\d+\.branch)\.bn1\.", r"\1.depthwise.bn."),
    (r"^(stages\.0\.\d+\.branch)\.conv_pw\.", r"\1.project.conv."),
    (r"^(stages\.0\.\d+\.branch)\.bn2\.", r"\1.project.bn."),
    (r"\.conv_pw\.", ".expand.conv."),
    (r"\.bn1\.", ".expand.bn."),
    (r"\.conv_dw\.", ".depthwise.conv."),
    (r"\.bn2\.", ".depthwise.bn."),
    (r"\.se\.conv_reduce\.", ".se.fc1."),
    (r"\.se\.conv_expand\.", ".se.fc2."),
    (r"\.conv_pwl\.", ".project.conv."),
    (r"\.bn3\.", ".project.bn."),
)
"""timm's key to ours, for MobileNetV2 and the EfficientNets: seven stages, the first without an expansion."""

# torchvision numbers all blocks in one row, after the stem.
_BLOCKS = tuple((stage, block) for stage, row in enumerate(ROWS) for block in range(row.depth))

RENAMES = (
    (r"^features\.0\.0\.", "stem.conv."),
    (r"^features\.0\.1\.", "stem.bn."),
    (r"^features\.18\.0\.", "stages.7.0.conv."),
    (r"^features\.18\.1\.", "stages.7.0.bn."),
    (r"^classifier\.1\.", "head.fc."),
    *(
        (rf"^features\.{1 + at}\.conv\.", f"stages.{stage}.{block}.branch.")
        for at, (stage, block) in enumerate(_BLOCKS)
    ),
    (r"^(stages\.0\.0\.branch)\.0\.0\.", r"\1.depthwise.conv."),
    (r"^(stages\.0\.0\.branch)\.0\.1\.", r"\1.depthwise.bn."),
    (r"^(stages\.0\.0\.branch)\.1\.", r"\1.project.conv."),
    (r"^(stages\.0\.0\.branch)\.2\.", r"\1.project.bn."),
    (r"\.branch\.0\.0\.", ".branch.expand.conv."),
    (r"\.branch\.0\.1\.", ".branch.expand.bn."),
    (r"\.branch\.1\.0\.", ".branch.depthwise.conv."),
    (r"\.branch\.1\.1\.", ".branch.depthwise.bn."),
    (r"\.branch\.2\.", ".branch.project.conv."),
    (r"\.branch\.3\.", ".branch.project.bn."),
)
"""torchvision's key to ours."""


@register(
    "mobilenetv2",
    paper="MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381",
    year=2018,
    image_size=224,
    parameters=3_504_872,
    multiply_adds=300_774_272,
    references=(Reference("torchvision:mobilenet_v2", RENAMES), Reference("timm:mobilenetv2_100", TIMM_RENAMES)),
)
class MobileNetV2(Classifier):
    """A 3x3 stem at stride 2, seven stages of inverted residuals, a 1x1 convolution to 1,280 channels.

    width    multiplier of all channels, each rounded to a multiple of 8; the last 1,280 do not go below that
    dropout  before the linear layer

    The paper is silent on the initialisation. As torchvision's: convolutions by fan-out, the linear layer from
    N(0, 0.01²) with zero bias.

    Raises ValueError for a width that is not above 0.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2) -> None:
        if width <= 0:
            raise ValueError(f"a width multiplier is above 0, not {width}")
        channels = whole_channels(32 * width)
        stem = ConvNormAct(in_channels, channels, 3, stride=2, act=relu6)
        stages = []
        for row in ROWS:
            stage = nn.Sequential()
            out_channels = whole_channels(row.channels * width)
            for position in range(row.depth):
                stride = row.stride if position == 0 else 1
                stage.append(InvertedResidual(channels, channels * row.expansion, out_channels, stride=stride))
                channels = out_channels
            stages.append(stage)
        last_channels = whole_channels(1280 * max(1.0, width))
        stages.append(nn.Sequential(ConvNormAct(channels, last_channels, act=relu6)))
        head = LinearHead(last_channels, num_classes, dropout)
        super().__init__(stem, stages, head)
        initialise_fan_out(self)
        nn.init.normal_(head.fc.weight, std=0.01)
        nn.init.zeros_(head.fc.bias)
