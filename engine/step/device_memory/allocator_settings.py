"""Which rules torch's CUDA caching allocator follows: expandable segments, where the person chose nothing.

A pool that grows page by page loses less to holes than one of segments of fixed sizes, above all under recompute. torch
reads PYTORCH_ALLOC_CONF, and PYTORCH_CUDA_ALLOC_CONF where that is not set (c10/core/AllocatorConfig.h, torch 2.11 to
2.15), when CUDA is first used.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import MutableMapping

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
CHOSEN = "expandable_segments:True"
VIRTUAL_MEMORY = 102
"""CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: some virtual GPUs have none."""


def choose_expandable(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Have segments expand, from now on, where nothing was chosen; returns whether they will.

    Comes before CUDA is used: blocks that are there keep their rules.
    """
    if not any(name in environment for name in VARIABLES) and not _cuda_started() and _cards_can():
        environment[VARIABLES[0]] = CHOSEN
    return expandable(environment)


def expandable(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether segments expand in this process, or would in a run of `launch/train.py` on a GPU to come."""
    given = next((environment[name] for name in VARIABLES if name in environment), None)
    if given is None:
        return not _cuda_started() and _cards_can()
    found = re.search(r"expandable_segments\s*:\s*(\w+)", given)
    return found is not None and found[1].lower() == "true"


def _cuda_started() -> bool:
    """Whether this process uses CUDA already; asks without loading torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _cards_can(library: str = "libcuda.so.1") -> bool:
    """Whether every card maps memory page by page; a machine without a driver plans for one that does."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return True
    count, value, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return True
    for number in range(count.value):
        if driver.cuDeviceGet(ctypes.byref(device), number):
            return False
        if driver.cuDeviceGetAttribute(ctypes.byref(value), VIRTUAL_MEMORY, device) or not value.value:
            return False
    return True
