"""The optimizers: what each is called, which class it is, what it keeps. A line here is all that a new one takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Optimizer:
    """One of torch's optimizers."""

    kind: str
    """Its class in torch.optim."""
    states: int
    """fp32 tensors of the parameters' size that it keeps."""
    options: Callable[[Any], dict[str, Any]] = lambda config: {}
    """From an OptimConfig to the arguments beside the learning rate and the parameter groups."""


OPTIMIZERS = {
    "sgd": Optimizer("SGD", 1, lambda config: {"momentum": config.momentum, "nesterov": config.momentum > 0}),
    "adam": Optimizer("Adam", 2),
    "adamw": Optimizer("AdamW", 2),
}
"""By the name that `--optimizer` takes. Their states begin at zero (engine.step.optim.allocate_state)."""
