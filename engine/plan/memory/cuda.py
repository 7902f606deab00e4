"""What a GPU allocates beside the tensors that operators return, and what leaves torch's allocator altogether.

Not measured here: each figure says where it comes from, and a measured peak corrects them (engine.plan.calibration).
They are chosen to err upwards, since a plan that claims to fit must fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.plan.memory import fused
from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import NORMS, DeviceModel, Extra

MIB = 1 << 20
aten = torch.ops.aten

CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


class CudaModel(DeviceModel):
    """Workspaces and layout copies of convolutions, and cuDNN's BatchNorm reserve."""

    def extras(self, function: Any, arguments: tuple, results: list[Tensor]) -> Iterable[Extra]:
        if function in CONVOLUTIONS:
            operands = [value for value in arguments if isinstance(value, Tensor) and value.ndim == 4]
            yield from convolution_extras(operands, results)
        elif function in NORMS and len(results) == 3:
            yield norm_reserve(arguments[0], results[1])
        elif function in fused.OPERATORS:
            yield from fused.extras(function, arguments, results)


def convolution_extras(operands: list[Tensor], results: list[Tensor]) -> Iterable[Extra]:
    """The algorithm's workspace, and channels-last copies of operands that are not laid out so.

    cuDNN gets every operand in one layout (`cudnn_conv_suggest_memory_format` in aten/src/ATen/native/ConvUtils.h). The
    workspace is taken as large as the largest operand, up to the cap that the run sets (CUDNN_CONV_WSCAP_DBG).
    """
    if any(last(tensor) for tensor in operands):
        for tensor in operands:
            if not tensor.is_contiguous(memory_format=torch.channels_last):
                yield Extra(nbytes(tensor), Category.TRANSIENT)
    yield Extra(max(map(nbytes, [*operands, *results])), Category.WORKSPACE, capped=True)


def last(tensor: Tensor) -> bool:
    """Whether a tensor is channels-last and not contiguous at the same time."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def norm_reserve(features: Tensor, statistics: Tensor) -> Extra:
    """cuDNN's reserve of a training BatchNorm, kept until its backward pass: taken as one bit an element.

    torch takes cuDNN for fp32 and fp16, and for bf16 its own kernel, which has none. A simulation's bfloat16 stands for
    both 16-bit dtypes.
    """
    half = features.dtype != torch.float32
    return Extra(features.numel() // 8, Category.SAVED, like=statistics, fp16_only=half)


@dataclass(frozen=True)
class Device:
    """What of a card a training process cannot use for tensors. Bytes."""

    context: int = 448 * MIB
    """CUDA context and torch's modules; 0.3-0.6 GiB on today's cards."""
    libraries: int = 0
    """cuBLAS's and cuDNN's code, loaded at the first call; part of what is assumed for the context."""
    cublas: int = 32 * MIB
    """cuBLAS's workspaces, one for the forward pass and one for autograd's thread: 8 MiB each before Hopper
    (aten/src/ATen/cuda/CUDABlas.cpp)."""
    nccl: int = 256 * MIB
    """NCCL's channels of one group of GPUs."""
    workspaces: bool = True
    """Convolutions take workspaces, and cuDNN's norms reserves; an emulated card's do not."""
    measured: bool = False
    """On such a card (engine.plan.memory.card), not assumed."""

    @property
    def outside(self) -> int:
        """What a process holds outside torch's allocator."""
        return self.context + self.libraries


def workspace_cap(budget: int) -> int:
    """Bytes a convolution's workspace may take: a thirty-second of the card, from 128 MiB to 1 GiB.

    Whole MiB, as CUDNN_CONV_WSCAP_DBG counts.
    """
    return max(128, min(1024, budget // 32 // MIB)) * MIB
