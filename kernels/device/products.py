"""The library's product of 16-bit matrices, and images as matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

REDUCTIONS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


@contextmanager
def sums_in_fp32() -> Iterator[None]:
    """Inside, products that cuBLAS splits along their sum are added up in fp32, not in 16 bits."""
    flags = torch.backends.cuda.matmul
    before = [(getattr(flags, name), getattr(flags, f"{name}_split_k", None)) for name in REDUCTIONS]
    for name, (_, split) in zip(REDUCTIONS, before, strict=True):
        setattr(flags, name, False if split is None else (False, split))
    try:
        yield
    finally:
        for name, (allowed, split) in zip(REDUCTIONS, before, strict=True):
            setattr(flags, name, allowed if split is None else (allowed, split))


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a · b of 16-bit matrices, summed in fp32 and rounded once to dtype; a CPU, which has no such product, in fp32."""
    if a.device.type == "cpu":
        return (a.float() @ b.float()).to(dtype)
    with sums_in_fp32():
        return torch.mm(a, b) if dtype == a.dtype else torch.mm(a, b, out_dtype=dtype)


def pixels_of(images: Tensor) -> Tensor:
    """Channels-last [N, C, H, W] as [N · H · W, C]."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def images_of(pixels: Tensor, like: Tensor) -> Tensor:
    """[N · H · W, C] as channels-last [N, C, H, W], with the sides of `like`."""
    return pixels.view(like.shape[0], *like.shape[2:], pixels.shape[1]).permute(0, 3, 1, 2)
