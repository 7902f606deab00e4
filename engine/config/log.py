"""What is left behind: the fields of the group `log`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from engine.config.checks import require
from engine.config.flag import TopLevel


@dataclass(frozen=True)
class LogConfig:
    """What a run leaves behind."""

    output: Annotated[Path | None, TopLevel] = None
    """Run folder; none is a new one, runs/ARCH-DATA-DATE-TIME."""
    every: int = 10
    """Steps between two rows of metrics.jsonl; the only steps at which the host waits for the device."""
    checkpoint_steps: int = 0
    """Steps between two checkpoints within an epoch; 0 is none. There is one after every epoch in any case."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk; 0 is all."""
    save_best: bool = True
    """model.safetensors holds the best weights; off: those of the last epoch."""
    best: Annotated[Literal["accuracy", "balanced", "macro_f1", "loss"], TopLevel] = "accuracy"
    """What the best weights are best at: accuracy, its mean over classes (balanced), the mean of the classes' F1, or
    the loss."""
    plots: bool = True
    """Draw plots and the report page at the end."""
    profile: Annotated[bool, TopLevel] = False
    """Record ten steps with torch's profiler and say where they go; the trace is in the run folder."""
    monitor_interval: float = 1.0
    """Seconds between two rows of monitor.jsonl; 0 is no monitor."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"--log.every must be at least 1 step, not {self.every}")
        require(self.checkpoint_steps >= 0, f"--log.checkpoint-steps must be 0 or more, not {self.checkpoint_steps}")
        require(
            self.keep_checkpoints >= 0, f"--log.keep-checkpoints must be 0 (all) or more, not {self.keep_checkpoints}"
        )
        require(
            self.monitor_interval >= 0, f"--log.monitor-interval must be 0 (off) or more, not {self.monitor_interval}"
        )
