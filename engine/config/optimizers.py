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
    reads: tuple[str, ...] = ()
    """Fields of OptimConfig that it reads beside the rates and the weight decay."""
    options: Callable[[Any], dict[str, Any]] = lambda config: {}
    """From an OptimConfig to those arguments that have a default of their own there."""
    fused: bool = True
    """Torch has one kernel for its whole step, which looks for overflows on the device."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """The arguments beside the learning rate and the parameter groups."""
        given = {name: getattr(config, name) for name in ("betas", "alpha", "eps") if name in self.reads}
        return {name: value for name, value in given.items() if value is not None} | self.options(config)


def _nesterov(config: Any) -> bool:
    return config.momentum > 0 and config.nesterov


OPTIMIZERS = {
    "sgd": Optimizer(
        "SGD", 1, ("momentum", "nesterov"), lambda config: {"momentum": config.momentum, "nesterov": _nesterov(config)}
    ),
    "adam": Optimizer("Adam", 2, ("betas", "eps")),
    "adamw": Optimizer("AdamW", 2, ("betas", "eps")),
    "rmsprop": Optimizer(
        "RMSprop", 2, ("momentum", "alpha", "eps"), lambda config: {"momentum": config.momentum}, fused=False
    ),
}
"""By the name that `--optimizer` takes. Their states begin at zero (engine.step.optim.allocate_state)."""
