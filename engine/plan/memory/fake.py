"""Networks without memory, and autocast as a GPU would do it.

Everything is traced on fake CPU tensors: a backward pass on fake CUDA tensors needs a GPU, and `torch.autocast("cuda")`
turns itself off without one, silently (pytorch issue 92627 and torch/amp/autocast_mode.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA_WIDENS = {
    *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cosine_similarity, F.normalize),
    *(torch.layer_norm, torch.group_norm, torch.softmax, torch.log_softmax, torch.norm, torch.cumsum, torch.prod),
    *(torch.exp, torch.log, torch.pow, torch.rsqrt, torch.reciprocal, torch.sum, F.softplus, F.cross_entropy),
    *(Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.rsqrt, Tensor.reciprocal),
    *(Tensor.sum, Tensor.norm, Tensor.cumsum, Tensor.prod),
}
"""Runs in fp32 under autocast on a GPU and not on a CPU ("CUDA Ops that can autocast to float32", torch.amp's page)."""


class CudaWidening(TorchFunctionMode):
    """Inside a CPU autocast region, cast to fp32 what autocast on a GPU would."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in CUDA_WIDENS and torch.is_autocast_enabled("cpu"):
            arguments = tuple(_widened(value) for value in arguments)
        return function(*arguments, **(keywords or {}))


def _widened(value: object) -> object:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


class AnyNumber(TorchDispatchMode):
    """Inside, an optimizer that asks a tensor without values for its number is told one that it can divide by.

    LAMB, Muon and NAdam ask for the count of their steps or the product of their decays; FakeTensors have no answer.
    """

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return 0.5
        return function(*arguments, **(keywords or {}))


@contextmanager
def autocast(dtype: torch.dtype, cuda: bool) -> Iterator[None]:
    """Autocast to a 16-bit `dtype` on CPU tensors, with a GPU's rules where `cuda`; fp32 is no autocast."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast("cpu", dtype=dtype), CudaWidening() if cuda else nullcontext():
        yield


def backward(loss: Tensor, cuda: bool) -> None:
    """`loss.backward()`, with a GPU's autocast rules in what it recomputes where `cuda`.

    A recompute turns autocast on again by itself, but not those rules. `Tensor.backward` would suspend a mode that is
    on around it, so the engine is called as torch.autograd.backward does.
    """
    if not cuda:
        loss.backward()
        return
    with CudaWidening():
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )


def fake_copy(model: nn.Module, channels_last: bool = True) -> nn.Module:
    """Give a model on the meta device fake CPU parameters and buffers, in place; call under FakeTensorMode.

    `nn.Module.to` cannot: fake tensors are not swapped.
    """
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.contiguous_format
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", memory_format=layout)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)
    return model


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """`build()` on the meta device, in training mode."""
    with torch.device("meta"):
        return build().train()
