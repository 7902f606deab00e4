"""A run's loss, and what it does about classes of unlike size, from the counts of its training images."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import RunConfig
from engine.data.balance import class_weights, describe, logit_shift
from engine.step.loss import LossTerms


def loss_terms(config: RunConfig, counts, device: torch.device) -> LossTerms:
    """The terms on `device` that `--data.balance` and `--optim.logit-adjust` name.

    counts  int64 [classes], the training images of each
    """

    def there(values) -> Tensor | None:
        return None if values is None else torch.tensor(values, dtype=torch.float32, device=device)

    return LossTerms.of(
        config.optim,
        there(class_weights(counts, config.data.balance, config.data.balance_beta)),
        there(logit_shift(counts, config.optim.logit_adjust)),
    )


def run_lines(config: RunConfig, classes: list[str], counts, lessons: str) -> str:
    """Rate, classes of unlike size, teacher and augmentation in words, a line each where there is something to say."""
    changed = config.augment.describe()
    lines = (
        config.optim.rate_line(),
        describe(classes, counts, config.data, config.optim),
        lessons,
        f"augmentation: {changed}" if changed else "",
    )
    return "".join(f"{line}\n" for line in lines if line)
