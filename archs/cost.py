"""What one image costs a network, counted on meta tensors: no memory, no arithmetic."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import archs.operator_flops  # noqa: F401  for networks through `kernels`

Hook = Callable[[nn.Conv2d, tuple[Tensor], Tensor], None]


def multiply_adds(model: nn.Module, height: int, width: int, channels: int = 3) -> int:
    """Multiply-adds of the convolutions and matrix products for one height x width image, in evaluation.

    The papers' own measure: normalisation, activations, pooling and biases are left out. Counted by torch's
    FlopCounterMode, which counts two operations a multiply-add. `model` may be on any device and stays as it is.
    """
    with FlopCounterMode(display=False) as counter:
        on_meta(model, height, width, channels)
    return counter.get_total_flops() // 2


def convolution_outputs(model: nn.Module, height: int, width: int) -> int:
    """Elements of all the convolutions' outputs for one image: the least that training without recompute keeps.

    Bytes are this x batch x bytes of an element.
    """
    total = 0

    def count(_module: nn.Conv2d, _inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    with hooked(model, count):
        on_meta(model, height, width)
    return total


@contextmanager
def hooked(model: nn.Module, hook: Hook) -> Iterator[None]:
    """Show `hook` every convolution that runs."""
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_meta(model: nn.Module, height: int, width: int, channels: int = 3) -> Tensor:
    """Logits of one evaluation forward of `model` on meta tensors; the model stays as it is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            images = torch.empty(1, channels, height, width, device="meta")
            return torch.func.functional_call(model, shadows, images)
    finally:
        for module, flag in training.items():
            module.training = flag
