"""The fused path's own code on a GPU: who is launched, in which order, into which memory. Kernels are no-ops here."""

import pytest
import torch

from archs.fused import set_fused
from archs.layers import InvertedResidual

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


def test_dispatch_and_launches_with_kernels_that_do_nothing(monkeypatch):
    """Forward and backward of a block with every kind of layer: each launch comes through, shapes and strides are the
    plain block's, and the host waits for nothing."""
    monkeypatch.setenv("EMULATED_GPU_SKIP_KERNELS", "1")
    torch.manual_seed(0)
    block = InvertedResidual(16, 64, 16, squeezed=4).to("cuda").to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 16, 8, 8, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = block(images)
    assert set_fused(block, "on", "cuda")
    for quiet in (False, True):  # kernels are compiled and loaded in the first pass
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            block.zero_grad()
            fused = block(images)
            fused.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert fused.shape == plain.shape and fused.stride() == plain.stride() and fused.dtype == plain.dtype
    assert all(parameter.grad is not None for parameter in block.parameters())
