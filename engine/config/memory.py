"""In how much memory: the fields of the group `memory`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.config.byte_sizes import parse_bytes
from engine.config.checks import ConfigError
from engine.config.flag import TopLevel


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept for the backward pass, and in how much memory."""

    recompute: Annotated[Literal["auto", "none", "block", "segments", "nested"], TopLevel] = "auto"
    """Run forward passes again in the backward pass: block by block, in the best runs of blocks (segments), or nested,
    the layers within those once more. auto is the cheapest that fits the GPU's memory, and none without a GPU."""
    gpu_memory: Annotated[str, TopLevel] = "auto"
    """Device memory to plan for, as in 8GiB; auto is what is free on the GPU, off plans nothing."""
    offload: Literal["auto", "on", "off"] = "auto"
    """Keep saved activations in pinned host memory; auto is where nothing else fits."""

    def __post_init__(self) -> None:
        if self.gpu_memory not in ("auto", "off"):
            try:
                parse_bytes(self.gpu_memory)
            except ValueError as error:
                raise ConfigError(f"--gpu-memory {error}") from None
