"""Networks without memory, and autocast and dropout as a GPU would do them.

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


CUDA_PROMOTES = {
    *(torch.addcdiv, torch.addcmul, torch.atan2, torch.bilinear, torch.cross, torch.dot, torch.tensordot),
    *(Tensor.addcdiv, Tensor.addcmul, Tensor.atan2, Tensor.cross, Tensor.dot, Tensor.scatter_add),
    *(F.grid_sample, F.bilinear),
}
"""Casts to the widest type among its tensors under autocast on a GPU ("CUDA Ops that promote to the widest input
type", torch.amp's page), copies that its gradient keeps; a CPU reads each in its own."""


class LikeCuda(TorchFunctionMode):
    """Inside, what is kept of fake CPU tensors is what a GPU would keep.

    Under autocast it casts what that does there, and dropout keeps a mask of bytes: its CPU kernel keeps the factors,
    as wide as what they multiply (ATen/native/Dropout.cpp).
    """

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function in (F.dropout, torch.dropout):
            return _fused_dropout(function, *arguments, **keywords)
        wide = function in CUDA_PROMOTES and any(_in_fp32(value) for value in arguments)
        if (wide or function in CUDA_WIDENS) and torch.is_autocast_enabled("cpu"):
            arguments = tuple(_widened(value) for value in arguments)
        return function(*arguments, **keywords)


def _fused_dropout(function: Callable, input: Tensor, p: float = 0.5, *more: bool, **named: bool) -> Tensor:
    training = named.get("training", named.get("train", more[0] if more else True))
    in_place = named.get("inplace", more[1] if len(more) > 1 else False)
    if training and not in_place and 0 < p < 1:
        return torch.native_dropout(input, p, True)[0]
    return function(input, p, *more, **named)


def _in_fp32(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


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
    half = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype)
    with half, LikeCuda() if cuda else nullcontext():
        yield


def backward(loss: Tensor, cuda: bool) -> None:
    """`loss.backward()`, with a GPU's rules in what it recomputes where `cuda`.

    A recompute turns autocast on again by itself, but not those rules. `Tensor.backward` would suspend a mode that is
    on around it, so the engine is called as torch.autograd.backward does.
    """
    if not cuda:
        loss.backward()
        return
    with LikeCuda():
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
