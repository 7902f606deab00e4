"""Memory that ran out is told from other errors, whoever raised it, in a line."""

import pytest
import torch

from engine.step.device_memory.out_of_memory import first_sentences, out_of_memory

LONG = (
    "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 504.00 MiB is "
    "free. Including non-PyTorch memory, this process has 78.61 GiB memory in use. Of the allocated memory 77.52 GiB "
    "is allocated by PyTorch, and 560.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def accelerator_error(code: int) -> RuntimeError:
    error = torch.AcceleratorError("CUDA error: some words")
    error.error_code = code
    return error


def within(error: Exception) -> RuntimeError:
    """As a compiler hands on what it met."""
    outer = RuntimeError("backend failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(LONG),
        accelerator_error(2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA driver error: out of memory"),
        within(torch.OutOfMemoryError(LONG)),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_is_out_of_memory(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        accelerator_error(700),  # an illegal address: the context is gone
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        within(ValueError("out of memory")),
        ValueError("CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=str,
)
def test_what_is_not(error):
    assert not out_of_memory(error)


def test_a_line_without_advice():
    assert first_sentences(torch.OutOfMemoryError(LONG)) == LONG[: LONG.index(" Including")]
    assert first_sentences(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nmore")).endswith("ALLOC_FAILED")
    assert first_sentences(RuntimeError("")) == "out of memory"
