"""A stop signal that reached one rank, heard by all at the same step.

Ranks may not leave a step that others wait in. After every step each hands a flag to a sum over all hosts that runs
beside the next step, and looks at the sum of the step before: nobody waits for it, and all look at the same one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from accelerate import Accelerator


class StopTogether:
    """The flags of a run's ranks; made on all of them together, in a group of their own: it is never a GPU's turn.

    A single process stops when it is asked to.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        several = accelerator.num_processes > 1
        self._group = dist.new_group(backend="gloo", timeout=accelerator.init_handler.timeout) if several else None
        self._flag = torch.zeros(1)
        self._work: dist.Work | None = None

    def after_step(self, mine: bool) -> bool:
        """Whether some rank had asked for a stop one step ago; all ask once a step. `mine`: whether this one does."""
        if self._group is None:
            return mine
        asked = self.drain()
        self._flag = torch.tensor([float(mine)])
        self._work = dist.all_reduce(self._flag, group=self._group, async_op=True)
        return asked

    def drain(self) -> bool:
        """Wait for what is under way; returns whether a rank had asked in it."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag.item())
