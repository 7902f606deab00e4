"""DistributedDataParallel without an exchange in the forward pass, in the words of the installed PyTorch."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.parallel import DistributedDataParallel

STRIDES = "Grad strides do not match bucket view strides"


class DdpOptions(DistributedDataParallelKwargs):
    """What accelerate makes DistributedDataParallel with.

    A rank that ran out of memory before its forward pass would be missed in an exchange there (recovery/exchange.py).
    Running statistics are not used in training; the first rank's are, before an evaluation (`share_buffers`).
    """

    def to_kwargs(self) -> dict[str, Any]:
        """DistributedDataParallel's arguments. PyTorch 2.15 has another name for `broadcast_buffers`, and warns."""
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        asked = super().to_kwargs()  # what differs from its defaults, such as the size of buckets
        asked.pop("broadcast_buffers", None)
        return asked | {"gradient_as_bucket_view": True, buffers: False}


def ignore_strides_of_one() -> None:
    """Leave out DDP's warning of gradients in another layout, which each rank would print.

    It compares strides as they are: those of a 1×1 kernel in channels-last differ where a dimension has one element,
    and describe the same bytes (torch/csrc/distributed/c10d/reducer.cpp).
    """
    warnings.filterwarnings("ignore", message=STRIDES)
