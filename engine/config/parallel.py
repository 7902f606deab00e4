"""Over how many devices: the fields of the group `parallel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.config.checks import require
from engine.config.flag import TopLevel


@dataclass(frozen=True)
class ParallelConfig:
    """How a global batch is spread."""

    micro_batch_size: int = 0
    """Images a GPU takes at once; the rest of its share is accumulated. 0 is the whole share. BatchNorm sees one
    micro-batch at a time, so this changes what such a network computes."""

    sync_bn: Annotated[bool, TopLevel] = False
    """BatchNorm over the images of all ranks together, not each rank's own."""

    gradient_compression: Literal["none", "bf16"] = "none"
    """Type that gradients are sent and added up in over ranks: theirs, fp32, or bf16, which halves what is sent and
    rounds every rank's gradient to 8 bits. Under ZeRO with --precision bf16 BatchNorm's stay fp32."""

    threads: int = 0
    """CPU threads of a process without a GPU; 0 is OMP_NUM_THREADS, or this machine's cores shared out."""

    timeout: float = 600.0
    """Seconds that processes wait for each other, at the start and in an exchange; then the run says for whom, and
    ends."""

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"--parallel.threads must be 0 (all cores) or more, not {self.threads}")
        require(5 <= self.timeout <= 86400, f"--parallel.timeout must be from 5 to 86,400 s, not {self.timeout}")
        require(
            self.micro_batch_size >= 0, f"--parallel.micro-batch-size must be 0 or more, not {self.micro_batch_size}"
        )
