"""The allocator's peak over steps as a plan means them, and what the process holds of the card beside it.

A process's first step lets cuDNN try its algorithms, whose workspaces no later step takes; a tail has a shape of its
own, and an evaluation is no step. Those are left out.
"""

from __future__ import annotations

import torch

from engine.monitor.nvml import GpuUnavailable, open_gpu


class PeakMemory:
    """Bytes, the largest of all intervals that counted; 0 where none did, and on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.allocated = self.reserved = 0

    def restart(self) -> None:
        """An interval begins."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def interval(self, counts: bool) -> None:
        """An interval of steps ends and the next begins; `counts` where all of its steps were planned ones."""
        if self.device.type != "cuda":
            return
        if counts:
            self.allocated = max(self.allocated, torch.cuda.max_memory_allocated(self.device))
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self.device))
        self.restart()

    def outside(self) -> int | None:
        """What this process holds of the card beside torch's allocator; None where NVML does not say."""
        if self.device.type != "cuda":
            return None
        held = torch.cuda.memory_reserved(self.device)
        try:
            gpu = open_gpu(self.device)
        except GpuUnavailable:
            return None
        try:
            process = gpu.read(at_least_bytes=held)["gpu_process_bytes"]
        finally:
            gpu.close()
        return None if process is None else int(process) - held
