"""Writing beside training: what is to be written is copied to the host first, and a thread does the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Copies of a tree of tensors and plain values in host memory, which is used again for the next one of its shape.

    From a GPU they go through pinned memory: the copy is as fast as the bus, and waited for once.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple, Tensor] = {}

    def of(self, tree: Any) -> Any:
        """The same tree; it is overwritten by the next call."""
        copied = self._of(tree, ())
        if any(tensor.is_pinned() for tensor in self._kept.values()):
            torch.cuda.synchronize()
        return copied

    def _of(self, value: Any, where: tuple) -> Any:
        if isinstance(value, dict):
            return type(value)((key, self._of(one, (*where, key))) for key, one in value.items())
        if isinstance(value, list | tuple):
            return type(value)(self._of(one, (*where, place)) for place, one in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        kept = self._kept.get(where)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype or kept.stride() != value.stride():
            kept = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
            self._kept[where] = kept
        kept.copy_(value.detach(), non_blocking=True)
        return kept


class Background:
    """One piece of work at a time, in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before has been waited for."""
        assert self._thread is None

        def run() -> None:
            try:
                work()
            except BaseException as error:  # told to whoever waits
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether there is work that was not waited for."""
        return self._thread is not None

    def wait(self, seconds: float | None = None) -> None:
        """Until it is done, or so long. Raises what it raised."""
        if self._thread is None:
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            return
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
