"""The optimizers: what each is called, which class it is, what it keeps. A line here is all that a new one takes.

torch's own come first. timm has what torch has not, in the form that today's recipes (A1-A3, ResMLP's, MobileNet's)
were trained with, and its networks and weights are read here anyway; schedule-free is its authors' package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Optimizer:
    """A library's optimizer: torch's own, timm's where torch has none, the authors' package for schedule-free."""

    kind: str
    """MODULE:CLASS."""
    states: int
    """fp32 tensors of the parameters' size that it keeps; of one that keeps others for some shapes, the most."""
    reads: tuple[str, ...] = ()
    """Fields of OptimConfig that it reads beside the rates and the weight decay."""
    options: Callable[[Any], dict[str, Any]] = lambda config: {}
    """From an OptimConfig to those arguments that have a default of their own there."""
    fused: bool = False
    """Torch has one kernel for its whole step, which looks for overflows on the device."""
    recordable: bool = False
    """Its update reads rate and count of steps on the device, so that a CUDA graph can hold it."""
    betas: int = 2
    """How many decays it has."""
    begins: Mapping[str, float | None] = field(default_factory=dict)
    """States that do not begin at zero: at this number, None as the weights."""
    whole: str = ""
    """Why it needs whole parameters, which ZeRO cuts into flat shards; empty where it takes each number by itself."""
    uneven: bool = False
    """It keeps less for some shapes."""
    counts_by_group: bool = False
    """It counts steps once for a group, which ZeRO-3 takes several times a step."""
    schedule_free: bool = False
    """What is evaluated and kept is not where gradients are taken."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """The arguments beside the learning rate and the parameter groups."""
        given = {name: getattr(config, name) for name in ("betas", "alpha", "eps") if name in self.reads}
        return {name: value for name, value in given.items() if value is not None} | self.options(config)

    def load(self) -> type:
        """The class; its library is imported here and not before."""
        module, _, name = self.kind.partition(":")
        return getattr(importlib.import_module(module), name)


def _momentum(config: Any) -> dict[str, Any]:
    return {"momentum": config.momentum}


def _nesterov(config: Any) -> dict[str, Any]:
    return {"momentum": config.momentum, "nesterov": config.momentum > 0 and config.nesterov}


LAYER_NORMS = "scales each layer's step by the norms of its weights and of its update"

OPTIMIZERS = {
    "sgd": Optimizer("torch.optim:SGD", 1, ("momentum", "nesterov"), _nesterov, fused=True, recordable=True),
    "adam": Optimizer("torch.optim:Adam", 2, ("betas", "eps"), fused=True, recordable=True),
    "adamw": Optimizer("torch.optim:AdamW", 2, ("betas", "eps"), fused=True, recordable=True),
    "nadam": Optimizer("torch.optim:NAdam", 2, ("betas", "eps"), begins={"mu_product": 1.0}),
    "rmsprop": Optimizer("torch.optim:RMSprop", 2, ("momentum", "alpha", "eps"), _momentum, recordable=True),
    "rmsprop-tf": Optimizer(
        "timm.optim:RMSpropTF", 2, ("momentum", "alpha", "eps"), _momentum, begins={"square_avg": 1.0}
    ),
    "lamb": Optimizer("timm.optim:Lamb", 2, ("betas", "eps"), whole=LAYER_NORMS),
    "lars": Optimizer("timm.optim:Lars", 1, ("momentum", "nesterov", "eps"), _nesterov, whole=LAYER_NORMS),
    "lion": Optimizer("timm.optim:Lion", 1, ("betas",)),
    "adan": Optimizer("timm.optim:Adan", 4, ("betas", "eps"), betas=3, counts_by_group=True),
    "muon": Optimizer(
        "timm.optim:Muon",
        2,
        ("momentum", "nesterov", "betas"),
        _nesterov,
        whole="makes each weight matrix's step orthogonal",
        uneven=True,
    ),
    "schedule-free": Optimizer(
        "schedulefree:AdamWScheduleFree",
        2,
        ("betas", "eps"),
        begins={"z": None},
        whole="is switched between two sets of weights",
        schedule_free=True,
    ),
    "schedule-free-sgd": Optimizer(
        "schedulefree:SGDScheduleFree",
        1,
        ("momentum",),
        _momentum,
        begins={"z": None},
        whole="is switched between two sets of weights",
        schedule_free=True,
    ),
}
"""By the name that `--optimizer` takes."""


def table_row(kind: type) -> Optimizer | None:
    """The row of an optimizer's class; None where it is none of these."""
    return next((row for row in OPTIMIZERS.values() if row.kind.partition(":")[2] == kind.__name__), None)
