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
    best_by: str = "accuracy"
    """What the best weights are best at, and their figure in it, the larger the better; none: not judged yet."""
    best_score: float | None = None

    def is_best(self, measure: str, score: float, accuracy: float) -> bool:
        """Whether an epoch that has just been evaluated is the best so far, by `measure`; if so it is kept in mind."""
        if self.best_score is None and self.best_by == "accuracy" and self.best_epoch:
            self.best_score = self.best_accuracy  # of a checkpoint from before there were other measures
        if measure != self.best_by:  # the run was resumed with another --best
            self.best_by, self.best_score = measure, None
        if self.best_score is not None and score <= self.best_score:
            return False
        self.best_score, self.best_accuracy, self.best_epoch = score, accuracy, self.epoch + 1
        return True

    def in_steps_of(self, steps_per_epoch: int) -> int:
        """Steps by the epochs that are done: `step`, unless an earlier session's epochs had others (its data grew)."""
        return self.epoch * steps_per_epoch + self.step_in_epoch

    def restore(self, values: dict[str, Any]) -> None:
        """Stand where a checkpoint's `values` say. Raises TypeError for names that are none of the fields."""
        vars(self).update(vars(type(self)(**values)))
