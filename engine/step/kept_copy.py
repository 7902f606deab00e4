"""A copy of tensors to go back to, taken and put back with one kernel a dtype."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class KeptCopy:
    """Room for the values of `tensors`, which have to stay the same objects; made without values."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for tensor in tensors:  # one dtype a call: mixed ones are taken one by one
            kept, live = self._kinds.setdefault(tensor.dtype, ([], []))
            kept.append(torch.empty_like(tensor, requires_grad=False))
            live.append(tensor.detach())

    def tensors(self) -> list[Tensor]:
        """What the copy holds in memory."""
        return [tensor for kept, _ in self._kinds.values() for tensor in kept]

    def take(self) -> None:
        """Keep the values of now."""
        for kept, live in self._kinds.values():
            torch._foreach_copy_(kept, live)

    def put_back(self) -> None:
        """Give the tensors the values that were taken, bit for bit, in place."""
        for kept, live in self._kinds.values():
            torch._foreach_copy_(live, kept)
