"""What is measured, and how much of it: the knobs of `launch/bench.py`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import archs
from engine.bench.instrument.rows import parse_budget

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Options:
    """Zero and none leave a choice to the suite. Raises ValueError for what cannot be meant."""

    archs: tuple[str, ...] = ()
    """Networks; none is the suite's own list."""
    batch_size: int = 0
    """Images a step."""
    image_size: int = 0
    """Pixels."""
    precision: str = ""
    """fp32, bf16 or fp16."""
    compile: bool | None = None
    """torch.compile on or off."""
    recompute: bool = False
    """Ours recomputes its blocks' activations."""
    fused: str = ""
    """Ours through the fused operators: auto, on or off."""
    rounds: int = 0
    """Turns of each contender."""
    budget: float = float("inf")
    """Seconds of wall clock."""
    dry_run: bool = False
    """Every line on the CPU at tiny sizes; nothing under profiles/ changes."""
    fresh: bool = False
    """Measure again what is in the file already."""
    warmed: bool = False
    """What is compiled is in the caches already."""
    go_on: bool = False
    """Leave rows alone that failed at this commit, too."""
    output: Path | None = None
    """Folder in place of profiles/."""
    photos: Path | None = None
    """Folder of photographs for the loader suite."""
    data: Path | None = None
    """CIFAR-10 as class folders or as cifar10_jpeg.tar.zst for the accuracy suite."""
    runs: tuple[Path, ...] = field(default_factory=tuple)
    """Finished run folders for the runs suite."""

    def __post_init__(self) -> None:
        for name in self.archs:
            archs.lookup(name)  # raises UnknownArch, a ValueError, with the nearest names
        if self.precision and self.precision not in PRECISIONS:
            raise ValueError(f"--precision {self.precision}: there are {', '.join(PRECISIONS)}")
        if min(self.batch_size, self.image_size, self.rounds) < 0:
            raise ValueError("--batch-size, --image-size and --rounds are 0 (the suite's choice) or more")

    @staticmethod
    def seconds(text: str | None) -> float:
        """A budget as a person writes it; none is no limit."""
        return float("inf") if text is None else parse_budget(text)


def stay_on_cpu() -> None:
    """Make this process and those that it starts see no GPU: a dry run is the same everywhere."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
