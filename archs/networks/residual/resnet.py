"""Deep Residual Learning for Image Recognition (He et al., 2015, arXiv:1512.03385).

A block learns what to add to its input, so a hundred layers train where twenty did. Where a stage
halves the map, the bottleneck block takes the stride in its 3x3 convolution, as torchvision does
("v1.5"), not in the first 1x1 as the paper has it.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from archs.classifier import Classifier
from archs.fused import Fusable, settle
from archs.layers import ConvNormAct, LinearHead, initialise_fan_out, relu
from archs.registry import Reference, register

PAPER = "Deep Residual Learning for Image Recognition, arXiv:1512.03385"

RENAMES = (
    (r"^conv1\.", "stem.conv.conv."),
    (r"^bn1\.", "stem.conv.bn."),
    *((rf"^layer{stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"^(stages\.\d+\.\d+)\.conv(\d)\.", r"\1.conv\2.conv."),
    (r"^(stages\.\d+\.\d+)\.bn(\d)\.", r"\1.conv\2.bn."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.bn."),
    (r"^fc\.", "head.fc."),
)
"""torchvision's key to ours, and timm's, which are the same: every ResNet, ResNeXt and SE-ResNet of four stages."""


class Residual(Fusable):
    """act(branch(x) + shortcut(x)): [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride].

    The shortcut is the input itself where the shapes allow it, else a 1x1 convolution with BatchNorm.
    """

    expansion: int
    """A block's output channels for each of its stage's base channels: 64, 128, 256 and 512."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNormAct(in_channels, out_channels, stride=stride, act=None)
        self.act = relu()

    def layers(self) -> list[nn.Module]:
        """The branch's, in order."""
        raise NotImplementedError

    def branch(self, features: Tensor) -> Tensor:
        for layer in self.layers():
            features = layer(features)
        return features

    def forward(self, features: Tensor) -> Tensor:
        if self.fused != "off":
            pending = self.through([*self.layers(), self.act], features)
            return settle(pending, self.shortcut(features))
        # In place: the branch ends in a BatchNorm, whose output nothing keeps.
        return self.act(self.branch(features).add_(self.shortcut(features)))


class BasicBlock(Residual):
    """Two 3x3 convolutions of `width` = out_channels channels."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        if width != out_channels or groups != 1:
            raise ValueError("a basic block has one width and no groups: use the bottleneck")
        super().__init__(in_channels, out_channels, stride)
        self.conv1 = ConvNormAct(in_channels, width, 3, stride)
        self.conv2 = ConvNormAct(width, out_channels, 3, act=None)

    def layers(self) -> list[nn.Module]:
        return [self.conv1, self.conv2]


class Bottleneck(Residual):
    """1x1 to `width` channels, 3x3 in `groups` groups, 1x1 to out_channels."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.conv1 = ConvNormAct(in_channels, width)
        self.conv2 = ConvNormAct(width, width, 3, stride, groups=groups)
        self.conv3 = ConvNormAct(width, out_channels, act=None)

    def layers(self) -> list[nn.Module]:
        return [self.conv1, self.conv2, self.conv3]


Block = type[BasicBlock] | type[Bottleneck]


def residual_stage(
    block: Block, depth: int, in_channels: int, width: int, out_channels: int, stride: int, groups: int = 1
) -> nn.Sequential:
    """`depth` blocks, the first of which takes the stride and the change of channels."""
    first = block(in_channels, width, out_channels, stride, groups)
    return nn.Sequential(first, *(block(out_channels, width, out_channels, 1, groups) for _ in range(depth - 1)))


def pooled_stem(in_channels: int, channels: int) -> nn.Sequential:
    """7x7 convolution and 3x3 max pooling, both at stride 2: [N, in_channels, H, W] -> [N, channels, H / 4, W / 4]."""
    pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(conv=ConvNormAct(in_channels, channels, 7, stride=2), pool=pool))


class ResNet(Classifier):
    """7x7 stem at stride 2, pooling, four stages at 1/4, 1/8, 1/16 and 1/32 of the image.

    block               BasicBlock (ResNet-18, 34) or Bottleneck (50 and deeper, ResNeXt), or a kind of one
    depths              blocks in each stage
    groups              of the 3x3 convolutions: ResNeXt's cardinality
    group_width         channels of a group in the first stage; it doubles with each stage
    zero_init_residual  start every block as the identity (Goyal et al., 2017, arXiv:1706.02677, section 5.1)

    Initialised as torchvision does: convolutions by fan-out, the linear layer by torch's default.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        groups: int = 1,
        group_width: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        stages, channels = [], 64
        for stage, depth in enumerate(depths):
            width, out_channels = group_width * groups << stage, 64 * block.expansion << stage
            stages.append(residual_stage(block, depth, channels, width, out_channels, 1 if stage == 0 else 2, groups))
            channels = out_channels
        super().__init__(pooled_stem(in_channels, 64), stages, LinearHead(channels, num_classes))
        initialise_fan_out(self)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    last = module.conv2 if isinstance(module, BasicBlock) else module.conv3
                    nn.init.zeros_(last.bn.weight)


def _add(name: str, block: Block, depths: Sequence[int], parameters: int, multiply_adds: int) -> None:
    """Register the ResNet of that block and depth (the paper's table 1)."""

    @register(
        name,
        paper=PAPER,
        year=2015,
        image_size=224,
        parameters=parameters,
        multiply_adds=multiply_adds,
        references=(Reference(f"torchvision:{name}", RENAMES), Reference(f"timm:{name}", RENAMES)),
    )
    def resnet(num_classes: int, *, in_channels: int = 3, zero_init_residual: bool = False) -> ResNet:
        return ResNet(block, depths, num_classes, in_channels=in_channels, zero_init_residual=zero_init_residual)


_add("resnet18", BasicBlock, (2, 2, 2, 2), parameters=11_689_512, multiply_adds=1_814_073_344)
_add("resnet34", BasicBlock, (3, 4, 6, 3), parameters=21_797_672, multiply_adds=3_663_761_408)
_add("resnet50", Bottleneck, (3, 4, 6, 3), parameters=25_557_032, multiply_adds=4_089_184_256)
_add("resnet101", Bottleneck, (3, 4, 23, 3), parameters=44_549_160, multiply_adds=7_801_405_440)
_add("resnet152", Bottleneck, (3, 8, 36, 3), parameters=60_192_808, multiply_adds=11_513_626_624)
