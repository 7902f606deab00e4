"""What is minimised, and how: the fields of the group `optim`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from engine.config.checks import require
from engine.config.flag import TopLevel
from engine.config.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class OptimConfig:
    """What is minimised, and how."""

    epochs: Annotated[int, TopLevel] = 10
    """Passes over the training images."""
    batch_size: Annotated[int, TopLevel] = 128
    """Images a step over all GPUs together (the global batch)."""
    lr: Annotated[float, TopLevel] = 0.001
    """Peak learning rate."""
    optimizer: Annotated[Literal[*OPTIMIZERS], TopLevel] = "adam"
    """SGD with Nesterov momentum, Adam, or AdamW."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of the weights; biases and normalisation parameters have none."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to zero."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567, section 7)."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 is no clipping."""
    ema: float = 0.0
    """Decay of a moving average of the weights, as 0.9999, which is what is evaluated and kept; 0 is none."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation, as 0.05 (Foret et al. 2020, arXiv:2010.01412): the gradient is taken that
    far up the slope, in a second pass a step; 0 is off."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs must be at least 1, not {self.epochs}")
        require(self.batch_size >= 1, f"--batch-size must be at least 1 image, not {self.batch_size}")
        require(self.lr > 0, f"--lr must be above 0, not {self.lr}")
        require(0 <= self.momentum < 1, f"--optim.momentum must be in [0, 1), not {self.momentum}")
        require(self.weight_decay >= 0, f"--optim.weight-decay must be 0 or more, not {self.weight_decay}")
        require(self.warmup_epochs >= 0, f"--optim.warmup-epochs must be 0 or more, not {self.warmup_epochs}")
        require(0 <= self.label_smoothing < 1, f"--optim.label-smoothing must be in [0, 1), not {self.label_smoothing}")
        require(self.clip_norm >= 0, f"--optim.clip-norm must be 0 (off) or more, not {self.clip_norm}")
        require(0 <= self.ema < 1, f"--optim.ema must be 0 (off) or a decay between 0 and 1, not {self.ema}")
        require(0 <= self.sam < math.inf, f"--optim.sam must be 0 (off) or a radius above 0, not {self.sam}")

    def refuse_deepspeed(self, zero_stage: int) -> None:
        """Raise ConfigError for what no launch by DeepSpeed, or none at that ZeRO stage, can do."""
        require(
            not self.sam,
            "--optim.sam does not run under DeepSpeed, whose engine updates the weights by itself after a backward "
            "pass and leaves no place for the second one; launch without it",
        )
        require(not (self.ema and zero_stage == 3), "--optim.ema needs whole parameters on a GPU; use ZeRO-2")
