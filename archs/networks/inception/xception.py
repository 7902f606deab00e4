"""Xception: Deep Learning with Depthwise Separable Convolutions (Chollet, 2016, arXiv:1610.02357).

An Inception block looks for patterns across channels and across places in separate convolutions. Taken to
its end, each channel is filtered alone by a 3x3 and a 1x1 mixes the channels: two small convolutions with
nothing between them, neither activation nor BatchNorm. Thirty-four of them in twelve residual blocks and
two last layers have Inception-v3's parameter count and learn more.

The topology is timm's `legacy_xception`, with Keras's published weights: the stem's two convolutions have no
padding, all others keep the map.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from archs.classifier import Classifier
from archs.fused import Fusable, settle
from archs.layers import ConvNormAct, LinearHead, initialise_fan_out, relu
from archs.registry import Reference, register

ENTRY = ((64, (128, 128)), (128, (256, 256)), (256, (728, 728)))
"""Channels into a block and out of its separable convolutions (figure 5); each block halves the map."""
MIDDLE = ((728, (728, 728, 728)),) * 8
"""These keep it."""
EXIT = (728, (728, 1024))
"""And this halves it, before the two last layers."""
LAST = (1536, 2048)

RENAMES = (
    (r"^conv([12])\.", r"stem.conv\1.conv."),
    (r"^bn([12])\.", r"stem.conv\1.bn."),
    # The blocks begin with an activation, all but the first.
    *((rf"^block1\.rep\.{3 * layer}\.", f"block1.separable{layer + 1}.") for layer in range(2)),
    *((rf"^block1\.rep\.{3 * layer + 1}\.", f"block1.separable{layer + 1}.bn.") for layer in range(2)),
    *((rf"\.rep\.{3 * layer + 1}\.", f".separable{layer + 1}.") for layer in range(3)),
    *((rf"\.rep\.{3 * layer + 2}\.", f".separable{layer + 1}.bn.") for layer in range(3)),
    (r"^(block\d+)\.separable", r"\1.branch.separable"),
    (r"\.skip\.", ".shortcut.conv."),
    (r"\.skipbn\.", ".shortcut.bn."),
    (r"^block([1-3])\.", r"stages.0.block\1."),
    (r"^block([4-9]|1[01])\.", r"stages.1.block\1."),
    (r"^block12\.", "stages.2.block12."),
    *((rf"^conv{layer}\.", f"stages.2.separable{layer}.") for layer in (3, 4)),
    *((rf"^bn{layer}\.", f"stages.2.separable{layer}.bn.") for layer in (3, 4)),
    (r"\.conv1\.weight$", ".depthwise.weight"),
    (r"^fc\.", "head.fc."),
)
"""timm's key to ours."""


def separable(in_channels: int, out_channels: int) -> OrderedDict[str, nn.Module]:
    """3x3 in each channel alone, 1x1 across channels, BatchNorm: -> [N, out_channels, H, W]."""
    return OrderedDict(
        depthwise=nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        pointwise=nn.Conv2d(in_channels, out_channels, 1, bias=False),
        bn=nn.BatchNorm2d(out_channels),
    )


class XceptionBlock(Fusable):
    """Separable convolutions with an activation before each, summed with the input.

    [N, in_channels, H, W] -> [N, out_channels[-1], H / stride, W / stride]: at stride 2 the branch ends in a 3x3 max
    pooling, and the shortcut is a 1x1 convolution with BatchNorm.

    activated  the input has been through an activation: the branch begins with none
    """

    def __init__(self, in_channels: int, out_channels: Sequence[int], stride: int, *, activated: bool = False) -> None:
        super().__init__()
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for layer, width in enumerate(out_channels, start=1):
            if layer > 1:
                branch[f"act{layer}"] = relu()
            elif not activated:
                branch["act1"] = nn.ReLU()  # not in place: the shortcut needs the input as it was
            branch[f"separable{layer}"] = nn.Sequential(separable(channels, width))
            channels = width
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            branch["pool"] = nn.MaxPool2d(kernel_size=3, stride=stride, padding=1)
            self.shortcut = ConvNormAct(in_channels, channels, stride=stride, act=None)
        self.branch = nn.Sequential(branch)

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            return settle(self.through(self.branch, features), self.shortcut(features))
        # In place: the branch ends in a BatchNorm or a pooling, whose output nothing keeps.
        return self.branch(features).add_(self.shortcut(features))


@register(
    "xception",
    paper="Xception: Deep Learning with Depthwise Separable Convolutions, arXiv:1610.02357",
    year=2016,
    image_size=299,
    minimum_size=7,
    parameters=22_855_952,
    multiply_adds=8_357_403_496,
    references=(Reference("timm:legacy_xception", RENAMES),),
)
class Xception(Classifier):
    """Entry, middle and exit flow (figure 5): maps at 1/16 of the image in the middle, 1/32 at the end.

    dropout  before the last linear layer; the paper's ImageNet runs have 0.5 (section 4.3)

    Initialised as timm does, the paper being silent: convolutions by fan-out.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, dropout: float = 0.0) -> None:
        stem = OrderedDict(
            conv1=ConvNormAct(in_channels, 32, 3, stride=2, padding=0), conv2=ConvNormAct(32, 64, 3, padding=0)
        )
        blocks = [XceptionBlock(*row, stride=2, activated=index == 0) for index, row in enumerate(ENTRY)]
        blocks += [XceptionBlock(*row, stride=1) for row in MIDDLE]
        named = [(f"block{index}", block) for index, block in enumerate(blocks, start=1)]
        end: OrderedDict[str, nn.Module] = OrderedDict(block12=XceptionBlock(*EXIT, stride=2))
        channels = EXIT[1][-1]
        for layer, width in enumerate(LAST, start=3):
            end[f"separable{layer}"] = nn.Sequential(OrderedDict(**separable(channels, width), act=relu()))
            channels = width
        flows = (OrderedDict(named[:3]), OrderedDict(named[3:]), end)
        head = LinearHead(channels, num_classes, dropout)
        super().__init__(nn.Sequential(stem), (nn.Sequential(flow) for flow in flows), head)
        initialise_fan_out(self)
