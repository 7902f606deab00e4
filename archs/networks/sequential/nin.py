"""Network in Network (Lin, Chen and Yan, 2013, arXiv:1312.4400).

A k×k convolution followed by two 1×1 convolutions is a small MLP that slides over the image in place of
a linear filter. The last of four such layers makes one map a class and averages it, so there is no
linear layer, and each map is a confidence in its class. The paper's tables are for CIFAR and MNIST;
these are the widths, strides and poolings of the authors' ImageNet network in Caffe's model zoo, whose
last layer has 1,024 channels inside. Here it has as many as there are classes, as the learning
repository has it (2.02 M parameters with 10); `last_channels=1024` gives the model zoo's.
"""

from collections import OrderedDict

from torch import nn

from archs.layers import ConvAct
from archs.plain import ConvHead, PlainNetwork
from archs.registry import register

LAYERS = ((96, 11, 4, 0), (256, 5, 1, 2), (384, 3, 1, 1))
"""Channels, side, stride and padding of the convolution of each layer but the last, which is 3x3."""


def mlp_conv(in_channels: int, channels: int, kernel_size: int, stride: int, padding: int) -> OrderedDict:
    """A k×k convolution and two 1×1, each with ReLU: [N, in_channels, H, W] -> [N, channels, H', W']."""
    return OrderedDict(
        conv=ConvAct(in_channels, channels, kernel_size, stride, padding),
        mlp1=ConvAct(channels, channels),
        mlp2=ConvAct(channels, channels),
    )


@register(
    "nin",
    paper="Network In Network, arXiv:1312.4400",
    year=2013,
    image_size=224,
    minimum_size=39,
    parameters=7_439_608,
    multiply_adds=1_094_590_080,
)
class NIN(PlainNetwork):
    """Four layers at 1/4, 1/8, 1/16 and 1/32 of the image.

    last_channels  inside the last layer; None is as many as there are classes, and then weights for another number of
                   classes do not load
    dropout        before the last layer

    Initialised by fan-in (He et al., 2015, arXiv:1502.01852, equation 10) with zero biases: the paper sets it by hand
    and gives no figures, and twelve layers need the signal kept. The last convolution is drawn as SqueezeNet's, from
    N(0, 0.01²) with biases of one, so that the ReLU over the classes' maps starts open.
    """

    def __init__(
        self, num_classes: int, *, in_channels: int = 3, last_channels: int | None = None, dropout: float = 0.5
    ) -> None:
        stages, channels = [], in_channels
        for width, kernel_size, stride, padding in LAYERS:
            layers = mlp_conv(channels, width, kernel_size, stride, padding)
            # Caffe's pooling rounds the map's size up: 54, 27, 13 and 6 at 224 pixels.
            layers["pool"] = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
            stages.append(nn.Sequential(layers))
            channels = width
        last = num_classes if last_channels is None else last_channels
        if last < 1:
            raise ValueError(f"the last layer needs at least one channel, not {last}")
        layers = mlp_conv(channels, last, 3, 1, 1)
        del layers["mlp2"]  # it is the head's, to one map a class
        if dropout:
            layers = OrderedDict(dropout=nn.Dropout(dropout)) | layers
        stages.append(nn.Sequential(layers))
        head = ConvHead(last, num_classes, rectified=True)
        super().__init__(stages[0], stages[1:], head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(head.fc.weight, std=0.01)
        nn.init.ones_(head.fc.bias)
