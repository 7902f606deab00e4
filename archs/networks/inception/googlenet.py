"""Going Deeper with Convolutions (Szegedy et al., 2014, arXiv:1409.4842).

A block looks at several scales at once, by 1x1, 3x3 and 5x5 convolutions and a pooling side by side, with 1x1
convolutions before the large ones so that the arithmetic stays small. The network is 22 layers deep, and two
small classifiers on the way train its lower part; each counts 0.3 in the loss, and neither runs in evaluation.

The topology is torchvision's, after TensorFlow's weights: BatchNorm after every convolution, 3x3 in place of
5x5 (pytorch/vision issue 906), a 2x2 window in the fourth pooling. The learning repository's network (5.98 M
with 10 classes) has neither heads nor BatchNorm, and 5x5 convolutions; ours has 5.61 M without its heads.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from archs.classifier import AuxiliaryOutput, Classifier
from archs.layers import Branches, ConvNormAct, LinearHead, relu
from archs.networks.inception.inceptionv3 import TensorFlowScaling
from archs.registry import Reference, register

BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Table 1: channels of the 1x1, before and of the 3x3, before and of the 5x5, and after the pooling."""
POOLS = {"4a": ("pool3", 3), "5a": ("pool4", 2)}
"""Name and side of the max pooling, at stride 2, before these blocks."""
HEADED = ("4a", "4d")
"""The blocks whose outputs the auxiliary heads see (section 5)."""
AUXILIARY_WEIGHT = 0.3
"""Of each auxiliary loss (section 5)."""
POOLED = 4
"""Side of the map that an auxiliary head classifies."""

conv = partial(ConvNormAct, eps=1e-3)


def inception(
    in_channels: int, point: int, narrow3: int, conv3: int, narrow5: int, conv5: int, pooled: int
) -> Branches:
    """Figure 2b: [N, in_channels, H, W] -> [N, point + conv3 + conv5 + pooled, H, W]. Widths as in BLOCKS."""
    return Branches(
        branch1x1=conv(in_channels, point),
        branch3x3=nn.Sequential(conv(in_channels, narrow3), conv(narrow3, conv3, 3)),
        branch5x5=nn.Sequential(conv(in_channels, narrow5), conv(narrow5, conv5, 3)),
        branch_pool=nn.Sequential(nn.MaxPool2d(kernel_size=3, stride=1, padding=1), conv(in_channels, pooled)),
    )


def averaging(side: int, windows: int, like: Tensor) -> Tensor:
    """[windows, side], the matrix that averages a row of `side` pixels over windows which cover it.

    They are adaptive pooling's: from floor(i · side / windows) to ceil((i + 1) · side / windows), so that they overlap
    where `windows` does not divide `side`, and repeat pixels where it is larger.

    like  gives the dtype and the device
    """
    window, pixel = torch.arange(windows, device=like.device), torch.arange(side, device=like.device)
    first, end = window * side // windows, -(-(window + 1) * side // windows)
    inside = ((pixel >= first[:, None]) & (pixel < end[:, None])).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def averaged(features: Tensor, windows: int) -> Tensor:
    """Adaptive average pooling as a matrix product: [N, C, H, W] -> [N, C, windows, windows].

    The same sums in a fixed order, which the backward pass of torch's does not have on a GPU.
    """
    height, width = features.shape[-2:]
    rows, columns = averaging(height, windows, features), averaging(width, windows, features)
    window, pixel = (torch.arange(count, device=features.device) for count in (windows**2, height * width))
    matrix = rows[window // windows][:, pixel // width] * columns[window % windows][:, pixel % width]
    pixels = rearrange(features, "n c h w -> n c (h w)")
    return rearrange(
        torch.bmm(matrix.expand(features.shape[0], -1, -1), pixels.mT).mT, "n c (p q) -> n c p q", p=windows
    )


class AuxiliaryHead(nn.Module):
    """A classifier on a middle map of any size: [N, in_channels, H, W] -> [N, num_classes].

    Averaged down, or up, to 4x4, then a 1x1 convolution to 128 channels, 1,024 units and the classes. The units take
    the pixels in turn with all their channels, as channels-last memory has them.

    dropout  before the last layer
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = conv(in_channels, 128)
        self.units = nn.Linear(128 * POOLED**2, 1024)
        self.act = relu()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        pixels = rearrange(self.conv(averaged(features, POOLED)), "n c h w -> n c (h w)")
        units = self.act(self.units(rearrange(pixels, "n c p -> n (p c)")))
        return self.fc(self.dropout(units))


RENAMES = (
    (r"^conv(\d)\.", r"stem.conv\1."),
    (r"^inception(3[ab]|4a)\.", r"stages.0.\1."),
    (r"^inception(4[bcd])\.", r"stages.1.\1."),
    (r"^inception(4e|5[ab])\.", r"stages.2.\1."),
    (r"\.branch1\.", ".branch1x1."),
    (r"\.branch2\.", ".branch3x3."),
    (r"\.branch3\.", ".branch5x5."),
    (r"\.branch4\.", ".branch_pool."),
    *((rf"^aux{head + 1}\.", f"auxiliary.{head}.") for head in range(2)),
    (r"\.fc1\.", ".units."),
    (r"\.fc2\.", ".fc."),
    (r"^fc\.", "head.fc."),
)
"""torchvision's key to ours."""


def pixels_first(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's weights, where each auxiliary head's first linear layer takes a channel's pixels in turn."""
    return {
        key: rearrange(tensor, "units (c p) -> units (p c)", p=POOLED**2) if key.endswith(".fc1.weight") else tensor
        for key, tensor in state_dict.items()
    }


@register(
    "googlenet",
    paper="Going Deeper with Convolutions, arXiv:1409.4842",
    year=2014,
    image_size=224,
    minimum_size=15,
    parameters=13_004_888,
    multiply_adds=1_498_376_192,
    references=(
        Reference("torchvision:googlenet", RENAMES, convert=pixels_first, options={"tensorflow_scaling": True}),
    ),
)
class GoogLeNet(Classifier):
    """Maps at 1/8, 1/16 and 1/32 of the image; its stages end where the auxiliary heads hang.

    In training, `forward` returns an `AuxiliaryOutput` with two auxiliary heads of weight 0.3; in evaluation, or
    without the heads, the logits.

    auxiliary           build the auxiliary heads (6.4 M parameters at 1,000 classes)
    dropout             before the last linear layer: 40 % in the paper's table 1; torchvision's is 20 %
    auxiliary_dropout   before the last layer of each auxiliary head (section 5: 70 %)
    tensorflow_scaling  rescale the images first: torchvision's published weights expect it (its
                        `transform_input`); a network trained from scratch does not need it

    Initialised as torchvision does, the paper being silent: N(0, 0.01²), biases of the linear layers at torch's
    default.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        auxiliary: bool = True,
        dropout: float = 0.4,
        auxiliary_dropout: float = 0.7,
        tensorflow_scaling: bool = False,
    ) -> None:
        half = partial(nn.MaxPool2d, stride=2, ceil_mode=True)
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        if tensorflow_scaling:
            stem["scaling"] = TensorFlowScaling(in_channels)
        stem["conv1"] = conv(in_channels, 64, 7, stride=2)
        stem["pool1"] = half(3)
        stem["conv2"] = conv(64, 64)
        stem["conv3"] = conv(64, 192, 3)
        stem["pool2"] = half(3)
        channels, headed = 192, []
        stages: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
        for name, widths in BLOCKS.items():
            if name in POOLS:
                pool, side = POOLS[name]
                stages[-1][pool] = half(side)
            stages[-1][name] = inception(channels, *widths)
            channels = sum(widths[branch] for branch in (0, 2, 4, 5))
            if name in HEADED:
                headed.append(channels)
                stages.append(OrderedDict())
        head = LinearHead(channels, num_classes, dropout)
        super().__init__(nn.Sequential(stem), (nn.Sequential(stage) for stage in stages), head)
        heads = (AuxiliaryHead(width, num_classes, auxiliary_dropout) for width in headed)
        self.auxiliary = nn.ModuleList(heads) if auxiliary else None
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # torchvision cuts this normal off at 2, two hundred standard deviations out.
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        if not self.training or self.auxiliary is None:
            return super().forward(images)
        self.refuse_size(*images.shape[-2:])
        lower, middle, upper = self.stages
        first = lower(self.stem(images))
        second = middle(first)
        logits = self.head(upper(second))
        auxiliary = tuple(head(features) for head, features in zip(self.auxiliary, (first, second), strict=True))
        return AuxiliaryOutput(logits, auxiliary, (AUXILIARY_WEIGHT,) * len(auxiliary))
