"""What an op does to its input as it loads it, and the input checks that all ops share."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.activation import check_activation

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Prologue(NamedTuple):
    """x' = act((x - center) · scale + shift), per channel: the BatchNorm and activation that the last layer left open.

    center, scale, shift   [C] fp32 (fp64 for fp64 images), or all None: the activation alone
    act                    one of kernels.activation.ACTIVATIONS
    slope                  of leaky_relu below zero
    """

    center: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    act: str = "identity"
    slope: float = 0.01

    def is_identity(self) -> bool:
        """Nothing to do."""
        return self.center is None and self.act == "identity"


class Statistics(NamedTuple):
    """What BatchNorm needs of a tensor, over `count` = N · H · W values a channel: mean [C] and M2 = Σ (y - mean)² [C].

    Both are differentiable: a gradient that reaches them flows on into the tensor.
    """

    mean: Tensor
    m2: Tensor
    count: int | Tensor


def runs_triton(x: Tensor) -> bool:
    """Whether x meets the kernels (a CUDA tensor, or any under TRITON_INTERPRET=1) rather than the twin."""
    if x.dtype == torch.float64:
        return False
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def outside_autocast(x: Tensor) -> AbstractContextManager:
    """Inside, products keep their operands' dtype: an operator's body would else run in other precision when eager than
    within torch.compile, which turns autocast off there."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, and fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_images(x: Tensor, name: str = "x") -> Tensor:
    """x in channels-last; raise ValueError unless it is [N, C, H, W] with C ≥ 1 in one of DTYPES."""
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"{name} must be [N, C, H, W] with at least one channel, not {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} must be fp32, bf16 or fp16 (or fp64 on a CPU), not {x.dtype}")
    return x.contiguous(memory_format=torch.channels_last)


def check_prologue(x: Tensor, prologue: Prologue | None) -> Prologue:
    """The prologue, or the empty one; raise ValueError where its vectors do not fit x."""
    prologue = prologue or Prologue()
    check_activation(prologue.act)
    vectors = (prologue.center, prologue.scale, prologue.shift)
    if all(vector is None for vector in vectors):
        return prologue
    for name, vector in zip(Prologue._fields, vectors, strict=False):
        if vector is None:
            raise ValueError(f"prologue.{name} is missing: center, scale and shift go together")
        if vector.shape != (x.shape[1],):
            raise ValueError(f"prologue.{name} must be [{x.shape[1]}], one value a channel, not {list(vector.shape)}")
        if vector.dtype != compute_dtype(x):
            raise ValueError(f"prologue.{name} must be {compute_dtype(x)}, whatever x is, not {vector.dtype}")
    return prologue


def per_channel(vector: Tensor) -> Tensor:
    """[C] as [1, C, 1, 1]."""
    return vector[None, :, None, None]


def prologue_gradients(scale: Tensor | None, sum_dz: Tensor, sum_dz_x: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of center, scale and shift [C] from Σ dz and Σ dz · (x - center); None each where there is none."""
    return (None, None, None) if scale is None else (-scale * sum_dz, sum_dz_x, sum_dz)
