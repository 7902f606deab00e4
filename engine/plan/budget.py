"""How much device memory there is to plan for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from engine.config import ConfigError, RunConfig, require
from engine.config.byte_sizes import gib, parse_bytes
from engine.plan.memory.card import device_of
from engine.step.plan import Hardware, use_cuda

if TYPE_CHECKING:
    from engine.step.wrap import Launch  # accelerate takes seconds to import


def budget_bytes(config: RunConfig) -> int:
    """Bytes that --gpu-memory names; 0 for auto and off."""
    given = config.memory.gpu_memory
    return 0 if given in ("auto", "off") else parse_bytes(given)


PAUSE, PATIENCE = 0.5, 15.0
"""Seconds between two looks at memory that is being given back, and for how long it is looked at."""


def free_memory(settle: bool = False) -> int:
    """Bytes of the current GPU that this process can have: what is free, and the context that it holds already.

    settle  wait until it grows no more: the process in whose place this one started may not have given back all
    """
    free, _ = torch.cuda.mem_get_info()
    deadline = time.monotonic() + PATIENCE
    while settle and time.monotonic() < deadline:
        time.sleep(PAUSE)
        before, (free, _) = free, torch.cuda.mem_get_info()
        settle = free > before
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    return free + device_of(card.name, (card.major, card.minor)).context


def least_over_ranks(size: int, launch: Launch) -> int:
    """The least of what the ranks have, so that all make the same plan. Sets up their exchange, DeepSpeed's too."""
    if launch.ranks == 1:
        return size
    from accelerate import PartialState

    here = {} if use_cuda() else {"cpu": launch.deepspeed is None, "backend": "gloo"}
    state = PartialState(**here, timeout=launch.exchange_timeout)
    least = torch.tensor([size], device=state.device, dtype=torch.int64)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least.item())


def refuse_more_than_the_card(budget: int, hardware: Hardware | None) -> None:
    """Raise ConfigError for a budget above the memory of a GPU that is there."""
    if hardware is not None and hardware.type == "cuda" and budget > hardware.memory_bytes > 0:
        raise ConfigError(
            f"--gpu-memory {gib(budget)}: {hardware.name} has {gib(hardware.memory_bytes)}; give that or less, or auto"
        )


def budget_of(text: str) -> int:
    """Bytes of --gpu-memory. Raises ConfigError for what is no size, and for more than this machine's GPU has."""
    if text == "auto":
        require(use_cuda(), "--gpu-memory auto: there is no GPU here; give its memory, as in --gpu-memory 8GiB")
        return free_memory()
    try:
        budget = parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--gpu-memory {error}") from None
    refuse_more_than_the_card(budget, Hardware.detect() if use_cuda() else None)
    return budget
