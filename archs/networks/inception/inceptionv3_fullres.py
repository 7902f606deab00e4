"""Inception-v3 at full resolution, as the learning repository trained it: arXiv:1512.00567 without the stem's strides.

The stem neither strides nor pools, so on 224-pixel images the first grid is 222x222 and not 25x25:
209 G multiply-adds an image (5.7 G at 299 in the paper's network) and 104.3 GiB of convolution outputs
at batch 128 in fp32. That is why it did not train at that batch on any one card.

Topology and initialisation (torch's defaults) are those of Mayurji/Image-Classification-PyTorch,
InceptionV3.py, which follows weiaicunzai/pytorch-cifar100. Beside the stem it differs from
torchvision's in the convolution after the first grid's poolings (3x3, not 1x1), the order of the
factors in the single 7x7 path (7x1 first), average pooling into the last grid, BatchNorm's eps (1e-5)
and no auxiliary head.
"""

from collections import OrderedDict
from collections.abc import Iterator

from torch import nn

from archs.classifier import Classifier
from archs.layers import ConvNormAct, LinearHead
from archs.networks.inception.inceptionv3 import PAPER, inception_a, inception_b, inception_c, inception_d, inception_e
from archs.registry import register


@register(
    "inceptionv3_fullres",
    paper=PAPER,
    year=2015,
    image_size=224,
    minimum_size=9,
    parameters=24_162_248,
    multiply_adds=208_685_910_016,
)
class InceptionV3FullResolution(Classifier):
    """Grids at 1/1, 1/2 and 1/4 of the image less a border: 222, 110 and 54 at 224 pixels.

    dropout  before the last linear layer
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> None:
        conv = ConvNormAct
        stem: OrderedDict[str, nn.Module] = OrderedDict(
            conv_1a_3x3=conv(in_channels, 32, 3),
            conv_2a_3x3=conv(32, 32, 3),
            conv_2b_3x3=conv(32, 64, 3),
            conv_3b_1x1=conv(64, 80),
            conv_4a_3x3=conv(80, 192, 3, padding=0),
        )
        stages: tuple[OrderedDict[str, nn.Module], ...] = (
            OrderedDict(
                b=inception_a(conv, 192, pool_channels=32, pool_kernel=3),
                c=inception_a(conv, 256, pool_channels=64, pool_kernel=3),
                d=inception_a(conv, 288, pool_channels=64, pool_kernel=3),
            ),
            OrderedDict(
                a=inception_b(conv, 288),
                b=inception_c(conv, 768, channels=128, tall_first=True),
                c=inception_c(conv, 768, channels=160, tall_first=True),
                d=inception_c(conv, 768, channels=160, tall_first=True),
                e=inception_c(conv, 768, channels=192, tall_first=True),
            ),
            OrderedDict(
                a=inception_d(conv, 768, pool=nn.AvgPool2d), b=inception_e(conv, 1280), c=inception_e(conv, 2048)
            ),
        )
        head = LinearHead(2048, num_classes, dropout)
        super().__init__(nn.Sequential(stem), (nn.Sequential(stage) for stage in stages), head)

    def blocks(self) -> Iterator[nn.Module]:
        # The stem works on 224x224 maps: its layers are units of their own.
        yield from self.stem.children()
        for stage in self.stages:
            yield from stage.children()
