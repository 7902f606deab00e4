"""The exchange of gradients between ranks, in which a rank that ran out of memory still does its part.

DDP sums its buckets in their order, while the backward pass goes on. The other ranks wait in these sums for one that
cannot finish: it hands in zeros for the buckets that it has not reached (as torch's own `Join` does for a rank without
data), and then all agree by one all-reduce of a flag that the step did not happen. Where BatchNorm sees all ranks'
images, they wait within the passes too: those exchanges have a group of their own, so that they can be finished in the
same way without knowing how they take turns with DDP's (kernels.over_ranks).

The flag goes over gloo, from host to host. Memory runs out on the host, when it asks for it, so nothing waits for a
GPU: the hosts meet once a step, and their queues stay filled.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from engine.step.sync_norm import SyncNorm
from kernels.over_ranks import Followed


class GradientExchange:
    """DDP's buckets of one model, counted as they are handed in, and the flag that ranks agree by.

    model  as accelerate wrapped it, with `broadcast_buffers` off: a rank that fails before its forward pass would be
           missed there. Made on all ranks together
    halved buckets are sent in bf16
    """

    def __init__(self, model: DistributedDataParallel, accelerator: Accelerator, halved: bool = False) -> None:
        assert not model.broadcast_buffers
        self.halved = halved
        self._options = accelerator.ddp_handler.to_kwargs()
        self._flags = dist.new_group(backend="gloo", timeout=accelerator.init_handler.timeout)
        groups = {module.group for module in model.modules() if isinstance(module, SyncNorm)}
        assert len(groups) <= 1 and "" not in groups
        self._norms = Followed(groups.pop()) if groups else None
        self._handed_in: list[torch.futures.Future] = []
        self._attach(model)

    def _attach(self, model: DistributedDataParallel) -> None:
        self._model = model
        model.register_comm_hook(self, _halved_mean_over_ranks if self.halved else _mean_over_ranks)

    @property
    def within_passes(self) -> bool:
        """Whether ranks exchange more than gradients: a plan's first step of a kind is rehearsed then."""
        return self._norms is not None

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, a step goes through without any exchange but the flag; what it would exchange is noted."""
        assert self._norms is not None
        with self._norms.rehearsal(), self._model.no_sync():
            yield

    def begin(self, kind: str) -> None:
        """A step's passes begin: nothing has been handed in. Steps of a kind exchange the same within their passes."""
        self._handed_in.clear()
        if self._norms is not None:
            self._norms.begin(kind)

    def hand_in_zeros(self) -> None:
        """For the rank that failed: take part in what is left of this step's exchange."""
        works = self._norms.hand_in_zeros() if self._norms is not None else []
        buckets = self._model.reducer._get_zeros_like_grad_buckets()
        for bucket in buckets[len(self._handed_in) :]:
            self.sum(bucket.buffer().bfloat16() if self.halved else bucket.buffer())
        for work in works:
            work.wait()
        torch.futures.wait_all(self._handed_in)

    def sum(self, buffer: Tensor) -> torch.futures.Future:
        """Start to add up one bucket [elements], in place; the next one in order."""
        work = dist.all_reduce(buffer, group=self._model.process_group, async_op=True)
        future = work.get_future()
        self._handed_in.append(future)
        return future

    def any_failed(self, mine: bool) -> bool:
        """Whether some rank's step failed; all ranks ask once, after the last bucket."""
        flag = torch.tensor([float(mine)])
        dist.all_reduce(flag, group=self._flags)
        return bool(flag.item())

    def rewrap(self) -> DistributedDataParallel:
        """DDP around the same network anew, on all ranks: one whose backward pass broke off is of no use any more."""
        self._handed_in.clear()
        old = self._model
        network, where = old.module, {"device_ids": old.device_ids, "output_device": old.output_device}
        del old.reducer, old.logger  # its buckets are freed now, not when the collector comes by
        gc.collect()
        model = DistributedDataParallel(network, **where, **self._options, init_sync=False)
        self._attach(model)
        return model


def _mean_over_ranks(exchange: GradientExchange, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: the bucket's mean over the ranks, as DDP's own.

    DDP looks at the annotations: they have to be types, not strings.
    """
    buffer = bucket.buffer()
    buffer.div_(dist.get_world_size(exchange._model.process_group))
    return exchange.sum(buffer).then(lambda done: done.value()[0])


def _halved_mean_over_ranks(exchange: GradientExchange, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's own hook: the bucket in bf16, over the ranks, added up."""
    future = bf16_compress_hook(exchange._model.process_group, bucket)
    exchange._handed_in.append(future)
    return future
