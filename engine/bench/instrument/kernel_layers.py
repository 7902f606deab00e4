"""The layers of a network that a kernel could take, each shape once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import archs
from archs.fused import activation
from archs.layers import SqueezeExcite
from kernels.dispatch import kernel_for, layer_key


class Layer(NamedTuple):
    """A convolution that a kernel can take, with the activation behind the one before it."""

    channels: int
    outputs: int
    height: int
    width: int
    size: int
    stride: int
    groups: int
    act: str
    squeezed: int = 0
    """Channels inside the squeeze-and-excitation before it; 0 is none."""

    def key(self, dtype: torch.dtype) -> str:
        """Its key in the dispatch table."""
        op = "excited" if self.squeezed else "pointwise" if self.size == 1 else "depthwise"
        return layer_key(op, *self[:7], str(dtype).removeprefix("torch."))


def layers_of(arch: str, image_size: int) -> list[Layer]:
    """The network's depthwise and pointwise layers, each shape once, found on the meta device."""
    with torch.device("meta"):
        model = archs.build(arch, num_classes=10)
        images = torch.empty(2, 3, image_size, image_size)
    acts = {(activation(module) or ("", 0))[0] for module in model.modules()} - {"", "identity"}
    act = next(iter(sorted(acts)), "relu")
    found: dict[Layer, None] = {}
    excited: dict[int, tuple[Tensor, int]] = {}

    def remember(module: SqueezeExcite, _inputs: tuple[Tensor], output: Tensor) -> None:
        excited[id(output)] = output, module.fc1.out_channels  # the tensor too, so that its id stays its own

    def note(conv: nn.Conv2d, inputs: tuple[Tensor], _output: Tensor) -> None:
        x = inputs[0]
        if x.shape[2] * x.shape[3] == 1:
            return  # squeeze-and-excitation's own layers
        if kernel_for(x, conv.weight, conv.stride, conv.padding, conv.groups) != "aten":
            sides = (x.shape[2], x.shape[3], conv.kernel_size[0], conv.stride[0], conv.groups)
            squeezed = excited[id(x)][1] if id(x) in excited and conv.groups == 1 else 0
            found[Layer(conv.in_channels, conv.out_channels, *sides, act, squeezed)] = None

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
        elif isinstance(module, SqueezeExcite):
            module.register_forward_hook(remember)
    with torch.no_grad():
        model.eval()(images)
    return list(found)


def layers_of_all(networks: Iterable[str], image_size: int) -> list[Layer]:
    """The layers of several networks, each shape once, in the networks' order."""
    return list(dict.fromkeys(layer for arch in networks for layer in layers_of(arch, image_size)))
