"""ResNeXt-29 (2x64d) as the learning repository trained it: the CIFAR network of arXiv:1611.05431, on 224-pixel images.

Three stages of three bottlenecks, two groups of 64, 128 and 256 channels. The stem is a 1x1
convolution at stride 1 with no pooling, so that on 224-pixel images the first stage works on
224x224 maps of 256 channels: 69 G multiply-adds an image, and 83.5 GiB of convolution outputs at
batch 128 in fp32. The paper's CIFAR networks (`resnext29_8x64d`) differ by a 3x3 stem.

Topology and initialisation (torch's defaults) are those of Mayurji/Image-Classification-PyTorch,
ResNeXt.py, which follows kuangliu/pytorch-cifar.
"""

from archs.networks.residual.resnext import PAPER, ResNeXt29
from archs.registry import register


@register(
    "resnext29_2x64d",
    paper=PAPER,
    year=2016,
    image_size=224,
    parameters=10_143_528,
    multiply_adds=69_065_678_848,
)
def resnext29_2x64d(num_classes: int, *, in_channels: int = 3) -> ResNeXt29:
    """Global average pooling before the linear layer, so any image size will do."""
    return ResNeXt29(num_classes, groups=2, stem_kernel=1, in_channels=in_channels)
