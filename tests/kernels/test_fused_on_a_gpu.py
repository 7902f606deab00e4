"""The fused path's own code on a GPU: who is launched, in which order, into which memory. Kernels are no-ops here."""

import pytest
import torch

from archs.fused import set_fused
from archs.layers import InvertedResidual

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


@pytest.mark.parametrize(("channels", "dtype"), [(16, torch.float32), (128, torch.bfloat16)])
def test_dispatch_and_launches_with_kernels_that_do_nothing(monkeypatch, channels, dtype):
    """Forward and backward of a block with every kind of layer: each launch comes through, shapes and strides are the
    plain block's, and the host waits for nothing. Many channels in 16 bits go through the library's products."""
    monkeypatch.setenv("EMULATED_GPU_SKIP_KERNELS", "1")
    torch.manual_seed(0)
    block = InvertedResidual(channels, 4 * channels, channels, squeezed=4)
    block = block.to("cuda").to(memory_format=torch.channels_last).train()
    images = torch.randn(4, channels, 8, 8, device="cuda").contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        plain = block(images)
    assert set_fused(block, "on", "cuda")
    for quiet in (False, True):  # kernels are compiled and loaded in the first pass
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            block.zero_grad()
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                fused = block(images)
            fused.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert fused.shape == plain.shape and fused.stride() == plain.stride() and fused.dtype == plain.dtype
    assert all(parameter.grad is not None for parameter in block.parameters())
