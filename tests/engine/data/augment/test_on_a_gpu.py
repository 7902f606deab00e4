"""Augmentation on a GPU: the pixels of the CPU, without a wait for the device."""

import numpy as np
import pytest
import torch

from engine.config import AugmentConfig
from engine.data.augment.augmentation import Augmentation
from engine.data.preprocessing import Preprocessing
from engine.data.sampling import Where
from engine.step.loss import loss_and_hits

PIXELS = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.875, "bilinear", 32)
CONFIGS = {
    "all at once": AugmentConfig(
        preset="strong", rotation=20.0, jitter=(0.3, 0.3, 0.3, 0.1), grayscale=0.3, blur=0.5, vertical_flip=0.3
    ),
    "augmix": AugmentConfig(policy="augmix"),
    "autoaugment": AugmentConfig(policy="autoaugment", mixup=0.8, mix_mode="batch"),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_makes_the_cpus_pixels_and_waits_for_nothing(name):
    config, indices = CONFIGS[name], np.arange(16)
    images = torch.nn.functional.interpolate(torch.rand(16, 3, 6, 6), size=(32, 32), mode="bicubic").clamp(0, 1)
    images = (images * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    labels, where = torch.arange(16), Where(1, 2, indices, 16)
    augmentation = Augmentation(config, PIXELS, 16, 0, 10)
    expected, of_them = augmentation(images, labels, where, torch.float32)
    there, labels_there = images.cuda(), labels.cuda()
    augmentation(there, labels_there, where, torch.float32)  # what is loaded at the first call may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, soft = augmentation(there, labels_there, where, torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.cpu() - expected).abs().mean() < 0.01
    torch.testing.assert_close(soft.cpu(), of_them)
    if soft.ndim == 2:
        logits = torch.randn(16, 16, device="cuda")
        loss, _ = loss_and_hits(logits, soft, torch.ones(16, device="cuda"), 0.1)
        assert loss.isfinite()
