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

    stop_of: str = ""
    stop_best: float | None = None
    stop_top: float | None = None
    stop_bad: int = 0
    """What --stop.metric looks at; its best by --stop.min-delta, its best of all, the evaluations without a better."""
    plateau_best: float | None = None
    plateau_bad: int = 0
    falls: int = 0
    """The same of the schedule `plateau`, and how often it has fallen."""
    spent: float = 0.0
    evaluation_seconds: float = 0.0
    """Seconds of training and evaluations so far, over all sessions, and of the last evaluation."""
    end_step: int = 0
    """Step at which time is up, in steps of the run; 0 is not known, or of no interest."""
    fit_step: int = 0
    fit_place: float = 0.0
    fit_slope: float = 1.0
    """The schedule was last refitted at this step, when it was at that place; places a step since."""

    def place(self, step: float) -> float:
        """Where in its schedule the run is at a step: at the step itself, unless it was refitted."""
        if step < self.fit_step:  # of before, as far as it is still known
            return max(0.0, self.fit_place - (self.fit_step - step))
        return self.fit_place + (step - self.fit_step) * self.fit_slope

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

    def forget_best(self) -> None:
        """The next epoch is the best so far, whatever it reaches."""
        self.best_score, self.best_accuracy, self.best_epoch = None, -1.0, 0

    def in_steps_of(self, steps_per_epoch: int) -> int:
        """Steps by the epochs that are done: `step`, unless an earlier session's epochs had others (its data grew)."""
        return self.epoch * steps_per_epoch + self.step_in_epoch

    def restore(self, values: dict[str, Any]) -> None:
        """Stand where a checkpoint's `values` say. Raises TypeError for names that are none of the fields."""
        vars(self).update(vars(type(self)(**values)))
