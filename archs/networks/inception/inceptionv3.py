"""Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015, arXiv:1512.00567).

Each block runs several paths over one input and joins their channels; large kernels are factorised,
5x5 into two 3x3 and 7x7 into 1x7 and 7x1. An auxiliary classifier on the middle grid regularises.

The topology is torchvision's, which is that of TensorFlow's published weights.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archs.classifier import AuxiliaryOutput, Classifier
from archs.layers import Branches, ConvNormAct, LinearHead
from archs.registry import Reference, register

PAPER = "Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567"
AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary loss: TensorFlow's Inception and torchvision's training scripts; the paper gives none."""

Conv = Callable[..., nn.Module]


def average_pool() -> nn.Module:
    """3×3 mean of each pixel's surroundings, padding counted: [N, C, H, W] -> [N, C, H, W]."""
    return nn.AvgPool2d(kernel_size=3, stride=1, padding=1)


def inception_a(conv: Conv, in_channels: int, pool_channels: int, pool_kernel: int = 1) -> Branches:
    """The paper's figure 5: [N, in_channels, H, W] -> [N, 224 + pool_channels, H, W].

    conv         makes a ConvNormAct
    pool_kernel  of the convolution after the pooling
    """
    return Branches(
        branch1x1=conv(in_channels, 64),
        branch5x5=nn.Sequential(conv(in_channels, 48), conv(48, 64, 5)),
        branch3x3dbl=nn.Sequential(conv(in_channels, 64), conv(64, 96, 3), conv(96, 96, 3)),
        branch_pool=nn.Sequential(average_pool(), conv(in_channels, pool_channels, pool_kernel)),
    )


def inception_b(conv: Conv, in_channels: int) -> Branches:
    """The paper's figure 10, from the 35 grid to the 17 grid: -> [N, 480 + in_channels, (H - 1) // 2, (W - 1) // 2]."""
    return Branches(
        branch3x3=conv(in_channels, 384, 3, stride=2, padding=0),
        branch3x3dbl=nn.Sequential(conv(in_channels, 64), conv(64, 96, 3), conv(96, 96, 3, stride=2, padding=0)),
        branch_pool=nn.MaxPool2d(kernel_size=3, stride=2),
    )


def inception_c(conv: Conv, in_channels: int, channels: int, *, tall_first: bool = False) -> Branches:
    """The paper's figure 6 with n = 7: -> [N, 768, H, W].

    channels    inside the 7x7 paths
    tall_first  7x1 before 1x7 in the single 7x7 path too, not in the double one alone
    """
    tall, wide = (7, 1), (1, 7)
    first, second = (tall, wide) if tall_first else (wide, tall)
    return Branches(
        branch1x1=conv(in_channels, 192),
        branch7x7=nn.Sequential(
            conv(in_channels, channels), conv(channels, channels, first), conv(channels, 192, second)
        ),
        branch7x7dbl=nn.Sequential(
            conv(in_channels, channels),
            conv(channels, channels, tall),
            conv(channels, channels, wide),
            conv(channels, channels, tall),
            conv(channels, 192, wide),
        ),
        branch_pool=nn.Sequential(average_pool(), conv(in_channels, 192)),
    )


def inception_d(conv: Conv, in_channels: int, pool: Callable[..., nn.Module] = nn.MaxPool2d) -> Branches:
    """From the 17 grid to the 8 grid: -> [N, 512 + in_channels, (H - 1) // 2, (W - 1) // 2]."""
    return Branches(
        branch3x3=nn.Sequential(conv(in_channels, 192), conv(192, 320, 3, stride=2, padding=0)),
        branch7x7x3=nn.Sequential(
            conv(in_channels, 192),
            conv(192, 192, (1, 7)),
            conv(192, 192, (7, 1)),
            conv(192, 192, 3, stride=2, padding=0),
        ),
        branch_pool=pool(kernel_size=3, stride=2),
    )


def inception_e(conv: Conv, in_channels: int) -> Branches:
    """The paper's figure 7, the 3x3 paths fanned out: -> [N, 2048, H, W]."""

    def fan() -> Branches:
        return Branches(a=conv(384, 384, (1, 3)), b=conv(384, 384, (3, 1)))

    return Branches(
        branch1x1=conv(in_channels, 320),
        branch3x3=nn.Sequential(conv(in_channels, 384), fan()),
        branch3x3dbl=nn.Sequential(conv(in_channels, 448), conv(448, 384, 3), fan()),
        branch_pool=nn.Sequential(average_pool(), conv(in_channels, 192)),
    )


class AuxiliaryHead(nn.Module):
    """The classifier on the 17 grid: [N, 768, H, W] -> [N, num_classes].

    The map is pooled by 5 at stride 3 and then meets an unpadded 5x5 convolution, so torchvision's needs
    a map of at least 17 (a 299-pixel image; at 224 the map is 12 and torchvision's raises). On a smaller
    map the window and the stride shrink until the pooled map is 5x5, which is what that convolution was
    made for; a map under 5 (an image under 107 pixels) is first repeated up to 5x5. From 17 on,
    it is torchvision's.
    """

    def __init__(self, conv: Conv, num_classes: int) -> None:
        super().__init__()
        self.conv0 = conv(768, 128)
        self.conv1 = conv(128, 768, 5, padding=0)
        self.head = LinearHead(768, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        if min(height, width) < 5:
            # Adaptive pooling would do both steps, but its backward pass on a GPU adds in no fixed order.
            features = F.interpolate(features, size=(max(height, 5), max(width, 5)), mode="nearest")
        windows = [auxiliary_window(side) for side in features.shape[-2:]]
        kernel, stride = zip(*windows, strict=True)
        return self.head(self.conv1(self.conv0(F.avg_pool2d(features, kernel, stride))))


def auxiliary_window(side: int) -> tuple[int, int]:
    """(kernel, stride) of the pooling that leaves a map of `side` >= 5 at 5, or at more from 20 on: (5, 3) from 17."""
    stride = min(side // 5, 3)
    return (side - 4 * stride, stride) if side < 17 else (5, 3)


class TensorFlowScaling(nn.Module):
    """From ImageNet's mean and standard deviation, as our loaders normalise, to TensorFlow's (x - 0.5) / 0.5.

    Raises ValueError for images of other than three channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"tensorflow_scaling is for RGB images, not for {in_channels} channels")
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("scale", (std / 0.5).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


RENAMES = (
    (r"^Conv2d_", "stem.conv_"),
    *((rf"^Mixed_{grid}([a-e])\.", rf"stages.{stage}.\1.") for stage, grid in enumerate((5, 6, 7))),
    *((rf"\.(branch\w+)_{position + 1}\.", rf".\1.{position}.") for position in range(5)),
    *((rf"\.(branch\w+)_{position + 1}([ab])\.", rf".\1.{position}.\2.") for position in range(1, 3)),
    (r"\.branch_pool\.", ".branch_pool.1."),
    (r"^AuxLogits\.fc\.", "auxiliary.head.fc."),
    (r"^AuxLogits\.", "auxiliary."),
    (r"^fc\.", "head.fc."),
)
"""torchvision's key to ours, and timm's, which are the same."""


@register(
    "inceptionv3",
    paper=PAPER,
    year=2015,
    image_size=299,
    minimum_size=75,
    parameters=27_161_264,
    multiply_adds=5_713_216_096,
    references=(
        Reference("torchvision:inception_v3", RENAMES, options={"tensorflow_scaling": True}),
        Reference("timm:inception_v3", RENAMES),
    ),
)
class InceptionV3(Classifier):
    """Images of at least 75 pixels a side; made for 299. Three grids, of 35, 17 and 8 at 299 pixels.

    In training, `forward` returns an `AuxiliaryOutput` with one auxiliary head of weight 0.4; in
    evaluation, or without the head, the logits. Raises ValueError for smaller images.

    auxiliary           build the auxiliary head (5.0 M parameters at 1,000 classes)
    dropout             before the last linear layer
    tensorflow_scaling  rescale the images first: torchvision's published weights expect it (its
                        `transform_input`); a network trained from scratch does not need it

    Initialised as torchvision does: N(0, 0.1²), the auxiliary head's linear layer N(0, 0.001²).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        auxiliary: bool = True,
        dropout: float = 0.5,
        tensorflow_scaling: bool = False,
    ) -> None:
        conv = partial(ConvNormAct, eps=1e-3)
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        if tensorflow_scaling:
            stem["scaling"] = TensorFlowScaling(in_channels)
        stem["conv_1a_3x3"] = conv(in_channels, 32, 3, stride=2, padding=0)
        stem["conv_2a_3x3"] = conv(32, 32, 3, padding=0)
        stem["conv_2b_3x3"] = conv(32, 64, 3)
        stem["pool1"] = nn.MaxPool2d(kernel_size=3, stride=2)
        stem["conv_3b_1x1"] = conv(64, 80)
        stem["conv_4a_3x3"] = conv(80, 192, 3, padding=0)
        stem["pool2"] = nn.MaxPool2d(kernel_size=3, stride=2)
        stages: tuple[OrderedDict[str, nn.Module], ...] = (
            OrderedDict(
                b=inception_a(conv, 192, pool_channels=32),
                c=inception_a(conv, 256, pool_channels=64),
                d=inception_a(conv, 288, pool_channels=64),
            ),
            OrderedDict(
                a=inception_b(conv, 288),
                b=inception_c(conv, 768, channels=128),
                c=inception_c(conv, 768, channels=160),
                d=inception_c(conv, 768, channels=160),
                e=inception_c(conv, 768, channels=192),
            ),
            OrderedDict(a=inception_d(conv, 768), b=inception_e(conv, 1280), c=inception_e(conv, 2048)),
        )
        head = LinearHead(2048, num_classes, dropout)
        super().__init__(nn.Sequential(stem), (nn.Sequential(stage) for stage in stages), head)
        self.auxiliary = AuxiliaryHead(conv, num_classes) if auxiliary else None
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # torchvision cuts this normal off at 2, twenty standard deviations out.
                nn.init.normal_(module.weight, std=0.1)
        if self.auxiliary is not None:
            # torchvision also means 0.01 for the 5x5 convolution, but sets it where its loop does not look.
            nn.init.normal_(self.auxiliary.head.fc.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        self.refuse_size(*images.shape[-2:])
        grid35, grid17, grid8 = self.stages
        middle = grid17(grid35(self.stem(images)))
        logits = self.head(grid8(middle))
        if not self.training or self.auxiliary is None:
            return logits
        return AuxiliaryOutput(logits, (self.auxiliary(middle),), (AUXILIARY_WEIGHT,))

    def blocks(self) -> Iterator[nn.Module]:
        # The stem holds the largest maps: its layers are units of their own.
        yield from self.stem.children()
        for stage in self.stages:
            yield from stage.children()
