"""What one image costs a network, counted on meta tensors: no memory, no arithmetic."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Counted = nn.Conv2d | nn.Linear
Hook = Callable[[Counted, tuple[Tensor], Tensor], None]


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of the convolutions and linear layers for one height x width RGB image, in evaluation.

    The papers' own measure: normalisation, activations, pooling and biases are left out. `model` may be on
    any device and stays as it is.
    """
    total = 0

    def count(module: Counted, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        # Every output element sums over one filter: input channels of a group x kernel, or input features.
        total += output.numel() * math.prod(module.weight.shape[1:])

    on_meta(model, count, height, width)
    return total


def convolution_outputs(model: nn.Module, height: int, width: int) -> int:
    """Elements of all the convolutions' outputs for one image: the least that training without recompute keeps.

    Bytes are this x batch x bytes of an element.
    """
    total = 0

    def count(module: Counted, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output.numel() if isinstance(module, nn.Conv2d) else 0

    on_meta(model, count, height, width)
    return total


def on_meta(model: nn.Module, hook: Hook, height: int, width: int) -> None:
    """One evaluation forward of `model` on meta tensors that shows `hook` each convolution and linear layer."""
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, Counted)]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            torch.func.functional_call(model, shadows, torch.empty(1, 3, height, width, device="meta"))
    finally:
        for module, flag in training.items():
            module.training = flag
        for handle in handles:
            handle.remove()
