"""Joules of the GPU's board while it is measured, where NVML counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.monitor.nvml import GpuUnavailable, open_gpu


def energy_counter(device: torch.device, nvml: Any = None) -> tuple[Callable[[], float | None] | None, str]:
    """(a function that gives joules since now, or None where nothing can be read; why not, in words).

    nvml  stands in for the module `pynvml`
    """
    if device.type != "cuda":
        return None, "energy is not measured without a GPU"
    try:
        reader = open_gpu(device, nvml)
    except GpuUnavailable as error:
        return None, f"energy is not measured: {error}"
    if reader.read()["gpu_energy_joules"] is None:
        return None, "energy is not measured: this GPU, or this user's permission, has no energy counter"
    return (lambda: reader.read()["gpu_energy_joules"]), ""
