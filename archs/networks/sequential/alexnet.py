"""ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky, Sutskever and Hinton, NIPS 2012).

Five convolutions and three linear layers: the first network to win ImageNet, by ReLU, dropout and two
GPUs. It was split over the two in two groups of channels; `alexnet` has its widths in one tower
without groups, with its local response normalisation and its overlapping pooling (windows of 3 at
stride 2). `alexnet_owt` is the single tower of One Weird Trick for Parallelizing Convolutional
Neural Networks (Krizhevsky, 2014, arXiv:1404.5997): narrower, without the normalisation, as torchvision has it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archs.layers import ConvAct, converted
from archs.plain import GridHead, PlainNetwork
from archs.registry import Reference, register

WIDTHS_2012 = (96, 256, 384, 384, 256)
WIDTHS_2014 = (64, 192, 384, 256, 256)
GRID = 6
PIXEL_STD = 57.6
"""ImageNet's standard deviation over the three channels, (0.229 + 0.224 + 0.225) / 3, of pixels from 0 to 255."""


class ResponseNorm(torch.autograd.Function):
    """y_i = x_i / (k + α Σ_j x_j²)^β over the `size` channels j around i; keeps x alone for the backward pass."""

    @staticmethod
    def forward(ctx, features: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(features)
        ctx.constants = size, alpha, beta, k
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        base = window_sum(wide.square(), size).mul_(alpha).add_(k)
        return converted(base.pow_(-beta) * wide, features.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        # ∂L/∂x_i = g_i b_i^-β - 2 α β x_i Σ_j g_j x_j b_j^(-β-1), b_j the base at j, j over the window of i.
        (features,) = ctx.saved_tensors
        size, alpha, beta, k = ctx.constants
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        gradient = gradient.to(wide.dtype)
        base = window_sum(wide.square(), size).mul(alpha).add(k)
        scaled = gradient * base.pow(-beta)
        crossed = window_sum(scaled * wide / base, size)
        return (scaled - 2 * alpha * beta * wide * crossed).to(features.dtype), None, None, None, None


def window_sum(values: Tensor, size: int) -> Tensor:
    """Sum over the `size` (odd) channels around each, fewer at the ends: [N, C, H, W] -> the same shape."""
    total = values.clone()
    for shift in range(1, size // 2 + 1):
        # `+=` on a slice would write it back once more.
        total[:, shift:].add_(values[:, :-shift])
        total[:, :-shift].add_(values[:, shift:])
    return total


class LocalResponseNorm(nn.Module):
    """Divide by the energy of the neighbouring channels, section 3.3's equation: [N, C, H, W] -> the same shape.

    The paper's constants: n = 5, k = 2, α = 1e-4, β = 0.75. torch's layer divides its α by n, and the paper does not.
    Keeps its input alone until the backward pass, and computes in fp32 at least.
    """

    def forward(self, features: Tensor) -> Tensor:
        return ResponseNorm.apply(features, 5, 1e-4, 0.75, 2.0)


class AlexNet(PlainNetwork):
    """Convolutions of 11x11 at stride 4, 5x5 and three of 3x3, at 1/4, 1/8 and 1/16 of the image; pooled to 6x6.

    widths         channels of the five convolutions
    response_norm  local response normalisation after the first two
    dropout        at both hidden linear layers
    drop_inputs    see GridHead
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        response_norm: bool = False,
        dropout: float = 0.5,
        drop_inputs: bool = False,
    ) -> None:
        a, b, c, d, e = widths

        def stage(*layers: nn.Module, norm: bool) -> nn.Sequential:
            named: OrderedDict[str, nn.Module] = OrderedDict(
                (f"conv{position}", layer) for position, layer in enumerate(layers, 1)
            )
            if norm:
                named["norm"] = LocalResponseNorm()
            named["pool"] = nn.MaxPool2d(kernel_size=3, stride=2)
            return nn.Sequential(named)

        # The paper says 224 pixels, which give its 55x55 map with a padding of 2.
        stem = stage(ConvAct(in_channels, a, 11, stride=4, padding=2), norm=response_norm)
        second = stage(ConvAct(a, b, 5, padding=2), norm=response_norm)
        third = stage(ConvAct(b, c, 3, padding=1), ConvAct(c, d, 3, padding=1), ConvAct(d, e, 3, padding=1), norm=False)
        head = GridHead(e, GRID, num_classes, dropout, drop_inputs=drop_inputs)
        super().__init__(stem, (second, third), head)


@register(
    "alexnet",
    paper="ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012",
    year=2012,
    image_size=224,
    minimum_size=63,
    parameters=62_378_344,
    multiply_adds=1_135_256_096,
)
def alexnet(num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> AlexNet:
    """The paper's widths in one tower.

    Initialised as its section 5 says: weights from N(0, 0.01²), biases one in the second, fourth and fifth convolution
    and in the hidden linear layers, zero elsewhere. Its images were raw pixels less their mean (section 2), ours are
    divided by their standard deviation as well: the first weights are drawn larger by that much, which is the same
    function. Without it the biases drown the image, and the network stays at chance.
    """
    model = AlexNet(WIDTHS_2012, num_classes, in_channels=in_channels, response_norm=True, dropout=dropout)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.stem.conv1.conv.weight, std=0.01 * PIXEL_STD)
    second, third = model.stages
    for layer in (second.conv1.conv, third.conv2.conv, third.conv3.conv, model.head.fc1, model.head.fc2):
        nn.init.ones_(layer.bias)
    return model


@register(
    "alexnet_owt",
    paper="One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997",
    year=2014,
    image_size=224,
    minimum_size=63,
    parameters=61_100_840,
    multiply_adds=714_188_480,
    references=(
        Reference(
            "torchvision:alexnet",
            (
                (r"^features\.0\.", "stem.conv1.conv."),
                (r"^features\.3\.", "stages.0.conv1.conv."),
                *((rf"^features\.{4 + 2 * place}\.", f"stages.1.conv{place}.conv.") for place in (1, 2, 3)),
                (r"^classifier\.1\.", "head.fc1."),
                (r"^classifier\.4\.", "head.fc2."),
                (r"^classifier\.6\.", "head.fc."),
            ),
        ),
    ),
)
def alexnet_owt(num_classes: int, *, in_channels: int = 3, dropout: float = 0.5) -> AlexNet:
    """The single tower of 2014. Initialised as torchvision does, by torch's default."""
    return AlexNet(WIDTHS_2014, num_classes, in_channels=in_channels, dropout=dropout, drop_inputs=True)
