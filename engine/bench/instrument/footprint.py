"""What a process takes of a GPU beside its tensors: the context, the libraries' code, their workspaces.

python -m engine.bench.instrument.footprint      prints the figures as JSON; a process of its own, which begins without
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F

from engine.bench.instrument.peers import NotAvailable, need
from engine.monitor.nvml import find_handle
from engine.runs.provenance import ROOT

CONVOLUTIONS = (
    *((64, 64, 56, 3, 1), (128, 128, 56, 3, 2), (256, 1024, 14, 1, 1), (512, 512, 7, 3, 1), (3, 64, 224, 7, 2)),
)
"""Channels, outputs, side, kernel and stride of five convolutions of ResNet-50."""
BATCH = 128
SPACES = "convolution_workspaces"


def footprint() -> dict[str, Any]:
    """The figures, from a new process. Raises NotAvailable without a GPU or NVML, RuntimeError where that fails."""
    need("pynvml")
    if not torch.cuda.is_available():
        raise NotAvailable("there is no GPU")
    done = subprocess.run(
        [sys.executable, "-m", "engine.bench.instrument.footprint"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> dict[str, Any]:
    """Bytes of the device that are used more after each of these than before it (NVML); workspaces by torch's count.

    context          CUDA's context and torch's own kernels
    matmul, conv     cuBLAS's and cuDNN's code, loaded at the first call
    cublas           what stays allocated after a product, and cublas_backward after one in a backward pass besides
    convolutions     peak of a forward and backward pass less its tensors, the largest of CONVOLUTIONS in bf16
    """
    import pynvml

    pynvml.nvmlInit()
    cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    idle = [pynvml.nvmlDeviceGetMemoryInfo(card).used for card in cards]  # before torch has a context on any
    handle = find_handle(pynvml, 0, torch.cuda.get_device_properties(0))

    def used() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return pynvml.nvmlDeviceGetMemoryInfo(handle).used - torch.cuda.memory_reserved()

    torch.zeros(1, device="cuda")
    figures: dict[str, Any] = {"context_bytes": used() - idle[pynvml.nvmlDeviceGetIndex(handle)]}
    x = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
    before, held = used(), torch.cuda.memory_allocated()
    x @ x
    figures |= {"matmul_bytes": used() - before, "cublas_bytes": torch.cuda.memory_allocated() - held}
    held = torch.cuda.memory_allocated()
    gradients = torch.autograd.grad((x.requires_grad_() @ x).sum(), x)  # autograd's thread has a handle of its own
    del gradients
    torch.cuda.synchronize()
    figures["cublas_backward_bytes"] = torch.cuda.memory_allocated() - held
    del x
    before = used()
    workspaces = {}
    for channels, outputs, side, kernel, stride in CONVOLUTIONS:
        images = torch.randn(BATCH, channels, side, side, device="cuda", dtype=torch.bfloat16)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(outputs, channels, kernel, kernel, device="cuda", dtype=torch.bfloat16)
        weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
        made = F.conv2d(images, weight, stride=stride, padding=kernel // 2)
        gradient = torch.ones_like(made)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = torch.autograd.grad(made, (images, weight), gradient)
        kept = sum(result.numel() * result.element_size() for result in results)
        workspaces[f"{channels}>{outputs} {side} k{kernel} s{stride}"] = torch.cuda.max_memory_allocated() - held - kept
        del images, weight, made, gradient, results
    figures |= {"conv_bytes": used() - before, SPACES: workspaces}
    told = ", ".join(
        f"{name.removesuffix('_bytes')} {size / 2**20:.0f} MiB" for name, size in figures.items() if name != SPACES
    )
    return figures | {"summary": f"{told}, convolutions at most {max(workspaces.values()) / 2**20:.0f} MiB"}


if __name__ == "__main__":
    print(json.dumps(measure()))
