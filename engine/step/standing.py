"""Where a run stands."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """Where a run stands. Plain values: it goes into every checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    step_in_epoch: int = 0
    step: int = 0
    """Optimizer steps since the start of the run."""
    loss_sum: float = 0.0
    hits: float = 0.0
    images: float = 0.0
    """Sums over this epoch's images so far, over all ranks."""
    seconds: float = 0.0
    """Training time of this epoch so far."""
    best_accuracy: float = -1.0
    best_epoch: int = 0

    def in_steps_of(self, steps_per_epoch: int) -> int:
        """Steps by the epochs that are done: `step`, unless an earlier session's epochs had others (its data grew)."""
        return self.epoch * steps_per_epoch + self.step_in_epoch

    def restore(self, values: dict[str, Any]) -> None:
        """Stand where a checkpoint's `values` say. Raises TypeError for names that are none of the fields."""
        vars(self).update(vars(type(self)(**values)))
