"""Keep saved activations in pinned host memory between the forward and the backward pass.

Rhu et al. 2016, "vDNN", arXiv:1602.08124. A storage that several operators save is copied once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Bytes under which a tensor stays on the device: BatchNorm's statistics, weights' casts of small layers."""


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Context of a forward pass: what autograd saves in it goes to the host and comes back when it is used.

    keep   tensors that stay where they are (parameters: they are there anyway)
    store  tensor -> its copy off the device; None is pinned host memory
    fetch  (copy, device) -> the tensor on the device again
    smallest  bytes of a storage from which on it moves; None is SMALLEST

    Copies are made on the current stream, so they are ordered with the kernels that write and read the tensors; the
    pinned buffer comes from torch's host allocator, which keeps it until the copy has ended. On a stream of their own
    they would overlap with kernels, but then a tensor's memory is free only when its copy has ended (`record_stream`):
    how much a step needs would depend on how fast the bus is, and no plan could say it. Offload is what fits where
    nothing else does, so its promise is memory (issue 16).
    """

    def __init__(
        self,
        keep: list[Tensor] | None = None,
        store: Callable[[Tensor], Tensor] | None = None,
        fetch: Callable[[Tensor, torch.device], Tensor] | None = None,
        smallest: int | None = None,
    ) -> None:
        self.kept = {id(tensor.untyped_storage()) for tensor in keep or ()}
        self.store, self.fetch = store or to_host, fetch or to_device
        self.smallest = SMALLEST if smallest is None else smallest
        self.copies: dict[tuple, tuple[weakref.ref, Any]] = {}
        super().__init__(self._pack, self._unpack)

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self.copies.clear()

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if id(storage) in self.kept or storage.nbytes() < self.smallest:
            return tensor
        # The version tells apart what an in-place operator left in the same storage later.
        key = id(storage), tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        known = self.copies.get(key)
        if known is None or known[0]() is not storage:
            known = weakref.ref(storage), (self.store(tensor.detach()), tensor.device)
            self.copies[key] = known
        return known[1]

    def _unpack(self, packed: Any) -> Tensor:
        return self.fetch(*packed) if isinstance(packed, tuple) else packed


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned and not waited for where it comes from a GPU."""
    cuda = tensor.is_cuda
    # empty_strided keeps channels-last; `to("cpu")` would not pin
    host = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=cuda)
    return host.copy_(tensor, non_blocking=cuda)


def to_device(copy: Tensor, device: torch.device) -> Tensor:
    """The copy back on its device. On a CPU a new tensor, so that what is tested there is what a GPU does."""
    back = torch.empty_strided(copy.shape, copy.stride(), dtype=copy.dtype, device=device)
    return back.copy_(copy, non_blocking=copy.is_pinned() if device.type == "cuda" else False)
