"""The allocator's peak over steps as a plan means them, and what the process holds of the card beside it.

A process's first step lets cuDNN try its algorithms, whose workspaces no later step takes; a tail has a shape of its
own, and an evaluation is no step. Those are left out, of what is cached as well.
"""

from __future__ import annotations

import torch

from engine.monitor.nvml import GpuUnavailable, open_gpu


class PeakMemory:
    """Bytes, the largest of all intervals that counted; 0 where none did, and on a CPU.

    What the allocator reserved counts from a cache that was emptied on, for as long as only planned steps use it: it
    keeps what trials, tails and evaluations took, long after those are over.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.allocated = self.reserved = 0
        self._own = False
        """All that is reserved was taken by steps that count."""

    def restart(self) -> None:
        """An interval begins."""
        if self.device.type != "cuda":
            return
        self._own = not self.reserved
        if self._own:
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def interval(self, counts: bool) -> None:
        """An interval of steps ends and the next begins; `counts` where all of its steps were planned ones."""
        if self.device.type != "cuda":
            return
        if not counts:
            self.restart()
            return
        self.allocated = max(self.allocated, torch.cuda.max_memory_allocated(self.device))
        if self._own:
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)

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
