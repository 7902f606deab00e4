"""When memory runs out all the same: the step is repeated under the next plan, with no image lost or counted twice.

A prediction does not know another process's allocations, nor how the allocator's memory is fragmented. A failed step
leaves nothing behind: its gradients are dropped, BatchNorm's running statistics are put back, nothing was counted yet.

Several ranks agree by one all-reduce of a flag before gradients are exchanged. That takes a wait a step, and no
exchange may happen before it, so it is done in the first steps of a plan only (GUARDED); that is when a step's need
shows. A rank that fails later, under SyncNorm (whose exchanges are in the forward pass) or under DeepSpeed ends the run
with its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.byte_sizes import gib
from engine.planner import Plan
from engine.recompute import apply_policy, clear_policy
from engine.wrap import bare_module, set_partition

if TYPE_CHECKING:
    from engine.trainer import Trainer

GUARDED = 20
"""Steps of a plan, on several ranks, in which a failure of some is survived by all."""


class MemoryExhausted(RuntimeError):
    """Memory ran out and no plan is left, or the ranks could not have agreed; the message says what to do."""


class _StepFailed(Exception):
    """Some rank ran out of memory in this step; raised on all of them, before anything was exchanged."""


class Rescue:
    """Runs a trainer's steps, and those that run out of memory again under the next plan of `ladder`."""

    def __init__(self, trainer: Trainer, ladder: tuple[Plan, ...] = ()) -> None:
        self.trainer, self.ladder = trainer, list(ladder)
        self.events: list[dict[str, Any]] = []
        self._steps = 0
        self._agreed = False
        self._floats, self._integers = _statistics(bare_module(trainer.model))
        self._kept = [[tensor.clone() for tensor in group] for group in (self._floats, self._integers)]

    @property
    def ranks(self) -> int:
        return self.trainer.accelerator.num_processes

    @property
    def guarded(self) -> bool:
        """Whether this step's ranks agree before they exchange gradients."""
        plan = self.trainer.plan
        return self.ranks > 1 and not plan.zero_stage and not plan.sync_bn and self._steps < GUARDED

    def step(self, batch) -> None:
        """One optimizer step, repeated until a plan carries it through.

        Raises MemoryExhausted where none does.
        """
        while True:
            for group, kept in zip((self._floats, self._integers), self._kept, strict=True):
                if group:
                    torch._foreach_copy_(kept, group)
            failure = self._attempt(batch)
            if failure is None:
                self._steps += 1
                return
            # Outside the except block: the traceback would keep the failed step's activations alive.
            self._undo()
            self._next_plan(failure)

    def _attempt(self, batch) -> str | None:
        """Run the step; returns None, or what memory ran out on."""
        self._agreed = False
        try:
            with self._no_exchange():
                self.trainer._step(batch)
        except _StepFailed:
            return "another rank ran out of memory"
        except torch.OutOfMemoryError as error:
            failure = str(error).splitlines()[0] if str(error) else "out of memory"
        else:
            return None
        if self._agreed:
            raise MemoryExhausted(self._hopeless(f"{failure}, after the ranks had exchanged gradients"))
        if self.ranks > 1:
            if not self.guarded:
                raise MemoryExhausted(self._hopeless(failure))
            self._any_failed(True)
        return failure

    @contextmanager
    def _no_exchange(self) -> Iterator[None]:
        """Keep DDP from exchanging gradients and buffers in a guarded step; `agree` does it."""
        model = self.trainer.model
        if not self.guarded or not isinstance(model, nn.parallel.DistributedDataParallel):
            yield
            return
        model.require_forward_param_sync = False
        with model.no_sync():
            yield

    def agree(self) -> None:
        """Called between the last backward pass of a step and its update: exchange gradients, or fail together."""
        if not self.guarded:
            self._agreed = self.ranks > 1
            return
        if self._any_failed(False):
            raise _StepFailed
        self._agreed = True
        works = []
        for parameter in self.trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(self.ranks)
                works.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in works:
            work.wait()

    def _any_failed(self, mine: bool) -> bool:
        flag = torch.tensor([float(mine)], device=self.trainer.accelerator.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def _undo(self) -> None:
        """Leave model and optimizer as they were before the step."""
        trainer = self.trainer
        trainer.optimizer.optimizer.zero_grad(set_to_none=True)
        for group, kept in zip((self._floats, self._integers), self._kept, strict=True):
            if group:
                torch._foreach_copy_(group, kept)
        trainer.accelerator.step = 0
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def _next_plan(self, failure: str) -> None:
        trainer = self.trainer
        before = trainer.plan
        if before.zero_stage or not self.ladder:
            raise MemoryExhausted(self._hopeless(failure))
        after = self.ladder.pop(0)
        switch(trainer, after)
        self._steps = 0
        row = {
            "event": "out_of_memory",
            "step": trainer.progress.step + 1,
            "reason": failure,
            "predicted_bytes": before.predicted_allocated_bytes,
            "allocated_bytes": _allocated(trainer.accelerator.device),
            "micro_batch_size": after.micro_batch_size,
            "accumulation": after.accumulation,
            "recompute": after.recompute,
        }
        self.events.append(row)
        if trainer.main:
            trainer.folder.append("event", **row)
            trainer.folder.write_json("plan.json", after.as_dict())
            print(f"out of memory at step {row['step']} ({failure}): going on with {after.describe()}", flush=True)
            for change in after.changes:
                print(f"note: {change}", flush=True)

    def _hopeless(self, failure: str) -> str:
        trainer = self.trainer
        good = trainer.last_checkpoint or "none yet"
        more = f" ({gib(peak)} were in use)" if (peak := _allocated(trainer.accelerator.device)) else ""
        return (
            f"out of memory at step {trainer.progress.step + 1}{more}: {failure}. Last checkpoint: {good}. Start again "
            "with a smaller --gpu-memory, --recompute nested or --parallel.micro-batch-size"
        )


def _statistics(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(running statistics, counters) that a forward pass changes."""
    buffers = list(model.buffers())
    return [one for one in buffers if one.is_floating_point()], [one for one in buffers if not one.is_floating_point()]


def _allocated(device: torch.device) -> int:
    """The allocator's peak in bytes; 0 where there is none."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def switch(trainer: Trainer, plan: Plan) -> None:
    """Let `trainer` go on under another plan of the same precision and ranks."""
    if plan.policy != trainer.plan.policy:
        model = bare_module(trainer.model)
        clear_policy(model)
        apply_policy(model, plan.policy)
        if plan.compile:
            set_partition(plan)
            torch._dynamo.reset()  # the compiled graphs are of the old policy
    trainer.plan = plan
    trainer.accelerator.gradient_accumulation_steps = plan.accumulation
