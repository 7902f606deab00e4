"""What running out of device memory looks like: PyTorch's exception, CUDA's, or a library's that says so in words."""

from __future__ import annotations

import torch

CUDA_MEMORY_ALLOCATION = 2
"""cudaErrorMemoryAllocation. Such an error leaves the device usable; others of AcceleratorError's do not."""
IN_WORDS = (
    "CUDA driver error: out of memory",  # the allocator's expandable segments
    "Triton Error [CUDA]: out of memory",  # a kernel is loaded
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN has none whose workspace fits
)
"""RuntimeErrors that have no type of their own (aten/src/ATen/cuda/Exceptions.h, cudnn/Conv_v8.cpp of PyTorch)."""
SENTENCES = 3
"""Torch's message is one line of 700 letters: what was asked for and what is free come first, advice later."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory on the device ran out, by itself or within torch.compile, which wraps what it meets."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) == CUDA_MEMORY_ALLOCATION
    if isinstance(error, RuntimeError) and any(words in str(error) for words in IN_WORDS):
        return True
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return inner is not None and out_of_memory(inner)


def first_sentences(error: BaseException) -> str:
    """What the error says, without advice: for a terminal's line."""
    line = next(iter(str(error).splitlines()), "") or "out of memory"
    sentences = line.split(". ")
    return line if len(sentences) <= SENTENCES else ". ".join(sentences[:SENTENCES]) + "."
