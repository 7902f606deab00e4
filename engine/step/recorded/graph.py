"""One optimizer step of a whole batch as a CUDA graph: launched once, and replayed over the same addresses.

The recipe is PyTorch's (notes/cuda.html, "whole-network capture"): a few steps on a stream of their own, which count
like all others, then one is recorded, and from then on each batch is copied to where the recorded one was. What changes
from step to step lies on the device: the rate, the number of the step, the batch.

The recording owns the memory of a step (a private pool of torch's allocator) for as long as it lives. Before work
outside of it, a tail or an evaluation, it is given up where the card has no room for both; it is recorded again after.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.step.device_memory.out_of_memory import first_sentences, out_of_memory
from engine.step.optim import make_recordable

WARM_UP = 3
"""Steps that are launched before one is recorded: libraries choose algorithms, kernels are compiled and loaded."""


@dataclass
class StaticBatch:
    """What a step reads of engine.data's Batch, at addresses that stay."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    global_count: int
    count: int

    @classmethod
    def like(cls, batch: Any) -> StaticBatch:
        """Room for such a batch."""
        tensors = (torch.empty_like(tensor) for tensor in (batch.images, batch.labels, batch.weights))
        return cls(*tensors, batch.global_count, batch.count)

    def take(self, batch: Any) -> None:
        """Its contents."""
        self.images.copy_(batch.images, non_blocking=True)
        self.labels.copy_(batch.labels, non_blocking=True)
        self.weights.copy_(batch.weights, non_blocking=True)


def kind_of(batch: Any) -> tuple:
    """What batches of one recording have in common."""
    tensors = (batch.images, batch.labels, batch.weights)
    return *((t.shape, t.stride(), t.dtype) for t in tensors), batch.global_count, batch.count


class StepGraph:
    """Takes whole steps through a recording, once there is one.

    run        takes one step of a batch: all that it reads and writes keeps its address
    optimizer  torch's own; its rates and counts are moved to the device
    abandon    undoes what a recording that broke off has left on the host
    budget     bytes of the card that the run may use; 0 is all
    """

    def __init__(
        self,
        run: Callable[[Any], None],
        optimizer: torch.optim.Optimizer,
        abandon: Callable[[], None],
        device: torch.device,
        budget: int = 0,
    ) -> None:
        self._run, self._optimizer, self._abandon = run, optimizer, abandon
        self._device, self._budget = device, budget
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: StaticBatch | None = None
        self._kind: tuple = ()
        self._warm = 0
        self._ready = False
        self.failed = ""
        """Why no step can be recorded, where one was tried; all are launched then."""
        self.pool_bytes = 0
        """What the recording holds of the card."""
        self.told: Callable[[dict[str, Any]], None] = lambda row: None
        """Called with what is known of each recording, and of one that failed (`reason`)."""
        optimizer.register_load_state_dict_post_hook(lambda _: self._states_moved())

    def prepare(self) -> None:
        """Before each step, and before the rate is set."""
        if not self._ready:
            make_recordable(self._optimizer)
            self._ready = True

    def take(self, batch: Any) -> bool:
        """One step of a whole batch; False where it is left to the caller.

        Raises RuntimeError where memory runs out, as the step itself does.
        """
        if self.failed:
            return False
        if (kind := kind_of(batch)) != self._kind:
            self.drop()
            self._batch, self._kind, self._warm = None, kind, 0
        if self._warm < WARM_UP:
            self._warm += 1
            here = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                self._run(batch)
            here.wait_stream(self._stream)
            return True
        if self._graph is None and not self._record(batch):
            return False
        assert self._graph is not None and self._batch is not None
        self._batch.take(batch)
        self._graph.replay()
        return True

    def make_room(self) -> None:
        """Before work outside of the recording: give its memory up unless the card has room for it twice."""
        if self._graph is None:
            return
        free, total = torch.cuda.mem_get_info(self._device)
        if self._budget:
            free = min(free, self._budget - (total - free))
        if free < self.pool_bytes:
            self.drop()
            torch.cuda.empty_cache()

    def drop(self) -> None:
        """Forget the recording; the next whole step is recorded anew."""
        if self._graph is not None:
            self._graph.reset()
        self._graph, self.pool_bytes = None, 0

    def _states_moved(self) -> None:
        """Other tensors are the optimizer's states: the recorded addresses are of no use."""
        self.drop()
        self._ready = False

    def _record(self, batch: Any) -> bool:
        """Record a step; False, and no further try, where it cannot be."""
        began = time.perf_counter()
        if self._batch is None:
            self._batch = StaticBatch.like(batch)
        self._batch.take(batch)
        torch.cuda.synchronize(self._device)
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as a loader's, go on with what a capture of the whole process would forbid.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._run(self._batch)
        except Exception as error:  # the boundary of a recording: whatever cannot be recorded can be launched
            reason, memory = _first(error)
            del graph
            self._abandon()
            self._let_generator_go_on()
            if memory:
                raise
            self.failed = reason
            self._batch = None
            self.told({"event": "cuda_graph", "reason": reason})
            return False
        self._graph = graph
        self.pool_bytes = max(0, torch.cuda.memory_reserved(self._device) - before)
        seconds = round(time.perf_counter() - began, 3)
        self.told({"event": "cuda_graph", "pool_bytes": self.pool_bytes, "seconds": seconds})
        return True

    def _let_generator_go_on(self) -> None:
        """A capture that broke off leaves the generator within it in some versions of torch (2.11), and the next random
        number outside is an internal error: a copy of its state is not."""
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


def _first(error: BaseException) -> tuple[str, bool]:
    """What went wrong first, in words, and whether memory ran out: the end of a broken capture raises once more."""
    chain = [error]
    while (before := chain[-1].__context__) is not None:
        chain.append(before)
    return first_sentences(chain[-1]), any(out_of_memory(one) for one in chain)
