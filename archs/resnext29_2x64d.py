"""ResNeXt-29 (2x64d) as the learning repository trained it: the CIFAR network of arXiv:1611.05431, on 224-pixel images.

Three stages of three bottlenecks, two groups of 64, 128 and 256 channels. The stem is a 1x1
convolution at stride 1 with no pooling, so that on 224-pixel images the first stage works on
224x224 maps of 256 channels: 69 G multiply-adds an image, and 83.5 GiB of convolution outputs at
batch 128 in fp32. The paper's CIFAR networks differ by a 3x3 stem.

Topology and initialisation (torch's defaults) are those of Mayurji/Image-Classification-PyTorch,
ResNeXt.py, which follows kuangliu/pytorch-cifar.
"""

from archs.classifier import Classifier
from archs.layers import ConvNormAct, LinearHead
from archs.registry import register
from archs.resnet import Bottleneck, residual_stage
from archs.resnext import PAPER

CARDINALITY = 2
GROUP_WIDTH = 64
EXPANSION = 2


@register(
    "resnext29_2x64d",
    paper=PAPER,
    year=2016,
    image_size=224,
    parameters=10_143_528,
    multiply_adds=69_065_678_848,
)
class ResNeXt29(Classifier):
    """Maps at 1/1, 1/2 and 1/4 of the image; global average pooling, so any image size will do."""

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        stages, channels = [], 64
        for stage in range(3):
            width = CARDINALITY * GROUP_WIDTH << stage
            stages.append(
                residual_stage(Bottleneck, 3, channels, width, EXPANSION * width, 1 if stage == 0 else 2, CARDINALITY)
            )
            channels = EXPANSION * width
        super().__init__(ConvNormAct(in_channels, 64), stages, LinearHead(channels, num_classes))
