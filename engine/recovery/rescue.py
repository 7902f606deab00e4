"""When memory runs out all the same: the step is repeated under the next plan, with no image lost or counted twice.

A prediction does not know another process's allocations, nor how the allocator's memory is fragmented. A failed step
leaves nothing behind: its gradients are dropped, BatchNorm's running statistics are put back, nothing was counted yet.

Several ranks agree by one all-reduce of a flag, after every step's backward pass (exchange.py). Where they exchange
BatchNorm's statistics within the passes, a plan's first step is rehearsed without that, agreed on, undone and then
done: from then on each rank knows what the others wait for. So is the first tail of an epoch, which is not compiled and
may have another order.

Where a rank fails outside of that, or under DeepSpeed, which exchanges by rules of its own, all ranks start again from
the last checkpoint under the next plan (engine.recovery.relaunch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.config.byte_sizes import UNITS, gib
from engine.recovery.checkpoint import Checkpointer, random_state, restore_random_state
from engine.recovery.exchange import GradientExchange
from engine.runs.runfolder import RunFolder
from engine.step.device_memory.out_of_memory import first_sentences, out_of_memory
from engine.step.kept_copy import KeptCopy
from engine.step.micro_batches import is_whole
from engine.step.optim import allocate_state
from engine.step.optimizer_step import OptimizerStep
from engine.step.plan import Plan
from engine.step.wrap import bare_module


class MemoryExhausted(RuntimeError):
    """Memory ran out and this process cannot mend it; the message says what to do.

    flags  what another process would go on with; none where no plan needs less
    row    what is known of the failure, for metrics.jsonl
    """

    def __init__(self, message: str, flags: tuple[str, ...] = (), row: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.flags, self.row = flags, row or {}


class _StepFailed(Exception):
    """Another rank ran out of memory in this step, before any rank has changed its weights."""


class _Rehearsed(Exception):
    """All ranks have come through a step that is not to be kept."""


class Rescue:
    """Takes steps, and those that run out of memory again under the next plan of `ladder`.

    step          takes one; what it changes is restored where it fails
    checkpointer  has the run's last checkpoint, and is told of a network that is wrapped anew
    folder        of the run: failures are told there

    All ranks make theirs together.
    """

    def __init__(
        self, step: OptimizerStep, checkpointer: Checkpointer, folder: RunFolder, ladder: tuple[Plan, ...] = ()
    ) -> None:
        self.step, self.checkpointer, self.folder, self.ladder = step, checkpointer, folder, list(ladder)
        self.events: list[dict[str, Any]] = []
        self._exchange: GradientExchange | None = None
        if isinstance(step.model, nn.parallel.DistributedDataParallel):
            self._exchange = GradientExchange(step.model, step.accelerator, step.plan.gradient_compression == "bf16")
        step.agree = self._agree
        self._rehearsed: set[str] = set()
        self._rehearsing = False
        self._alone = step.accelerator.num_processes == 1
        self._past_return = False
        self._statistics = KeptCopy(bare_module(step.model).buffers())

    def allocate_state(self) -> None:
        """Before the first step; raises MemoryExhausted where no plan could help."""
        try:
            allocate_state(self.step.optimizer.optimizer)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise before_first_step(error) from None

    def take(self, batch) -> None:
        """One optimizer step, repeated until a plan carries it through.

        Raises MemoryExhausted where none does.
        """
        while True:
            self._statistics.take()
            failure = self._rehearse(batch) or self._attempt(batch)
            if failure is None:
                return
            # Outside the except block: the traceback would keep the failed step's activations alive.
            self._undo()
            if self._exchange is not None:
                self.step.model = self.checkpointer.model = self._exchange.rewrap()
            self._next_plan(failure)
            self._rehearsed.clear()

    def _rehearse(self, batch) -> str | None:
        """Where ranks exchange within the passes: run the step without it and undo it; returns as `_attempt`."""
        if self._exchange is None or not self._exchange.within_passes or self._kind(batch) in self._rehearsed:
            return None
        self._rehearsed.add(self._kind(batch))
        generators = random_state()
        self._rehearsing = True
        try:
            with self._exchange.rehearsal():
                return self._attempt(batch)
        finally:
            self._rehearsing = False
            self._undo()
            restore_random_state(generators)

    def _attempt(self, batch) -> str | None:
        """Run the step; returns None, or what memory ran out on.

        Raises MemoryExhausted where the other ranks cannot be told.
        """
        self._past_return = False
        if self._exchange is not None:
            self._exchange.begin(self._kind(batch))
        try:
            self.step.take(batch)
        except _Rehearsed:
            return None
        except _StepFailed:
            return "another rank ran out of memory"
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            failure = first_sentences(error)
        else:
            return None
        if self._alone:
            return failure
        if self._past_return:
            raise self.exhausted(f"{failure}, after the ranks had exchanged gradients")
        if self._exchange is None:
            raise self.exhausted(failure)
        if not self._rehearsing:
            self._exchange.hand_in_zeros()
        self._exchange.any_failed(True)
        return failure

    def _kind(self, batch) -> str:
        return "whole" if is_whole(batch, self.step.plan) else "tail"

    def _agree(self, batch, last: bool) -> None:
        """Called after `batch`'s backward pass, before its gradients are used: go on together, or fail together.

        last  no other backward pass follows in this step
        """
        if self._exchange is not None:
            if self._exchange.any_failed(False):
                raise _StepFailed
            if self._rehearsing:
                raise _Rehearsed
            self._exchange.begin(self._kind(batch))
        self._past_return = last and not self._alone

    def _undo(self) -> None:
        """Leave model and optimizer as they were before the step."""
        step = self.step
        step.abandon()
        self._statistics.put_back()
        if step.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def _next_plan(self, failure: str) -> None:
        before = self.step.plan
        if before.zero_stage or not self.ladder:
            raise self.exhausted(failure)
        after = self.ladder.pop(0)
        self.step.switch(after)
        row = self._row(failure, before) | {
            "micro_batch_size": after.micro_batch_size,
            "accumulation": after.accumulation,
            "recompute": after.recompute,
        }
        self.events.append(row)
        if self.step.accelerator.is_main_process:
            self.folder.append("event", **row)
            self.folder.write_json("plan.json", after.as_dict())
            print(f"out of memory at step {row['step']} ({failure}): going on with {after.describe()}", flush=True)
            for change in after.changes:
                print(f"note: {change}", flush=True)

    def _row(self, failure: str, plan: Plan) -> dict[str, Any]:
        """What is known of a failure under `plan`."""
        return {
            "event": "out_of_memory",
            "step": self.step.progress.step + 1,
            "reason": failure,
            "predicted_bytes": plan.predicted_allocated_bytes,
            "allocated_bytes": _allocated(self.step.accelerator.device),
        }

    def exhausted(self, failure: str) -> MemoryExhausted:
        """What to raise where memory ran out and no step can be repeated here."""
        flags = self._smaller()
        row = self._row(failure, self.step.plan)
        good = self.checkpointer.settle() or "none yet"
        more = f" ({gib(peak)} were in use)" if (peak := row["allocated_bytes"]) else ""
        would = " ".join(flags) or "and a smaller --gpu-memory, --recompute nested or --parallel.micro-batch-size"
        return MemoryExhausted(
            f"out of memory at step {row['step']}{more}: {failure}. Last checkpoint: {good}. Go on with "
            f"--resume {self.folder.path} {would}",
            flags,
            row,
        )

    def _smaller(self) -> tuple[str, ...]:
        """The flags that a run under the next plan is started with; none where there is no such plan."""
        if not self.ladder:
            return ()
        after = self.ladder[0]
        if after.predicted_peak_bytes:
            return "--gpu-memory", f"{-(-after.predicted_peak_bytes // UNITS['MIB'])}MiB"
        return "--parallel.micro-batch-size", str(after.micro_batch_size)


def before_first_step(error: RuntimeError) -> MemoryExhausted:
    """What to raise or say where not even an empty step fits."""
    return MemoryExhausted(
        "out of memory before the first step: weights, gradients and the optimizer's state alone do not fit "
        f"({first_sentences(error)})"
    )


def _allocated(device: torch.device) -> int:
    """The allocator's peak in bytes; 0 where there is none."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
