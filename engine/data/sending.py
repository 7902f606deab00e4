"""Small tensors on their way to the device that images are on."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on `device`; to a GPU from pinned memory, so that the copy does not wait for it."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
