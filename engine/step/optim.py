"""Optimizers, their parameter groups, and their state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.config import OptimConfig
from engine.config.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weights with decay; biases and normalisation parameters without (He et al. 2018, arXiv:1812.01187)."""
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig, one_group: bool = False) -> torch.optim.Optimizer:
    """The optimizer of `config` over `model`'s parameters.

    one_group  not one with weight decay and one without: for DeepSpeed in fp16, without weight decay
    """
    chosen = OPTIMIZERS[config.optimizer]
    groups = parameter_groups(model, config.weight_decay)
    if one_group:
        groups = [{"params": [one for group in groups for one in group["params"]], "weight_decay": 0.0}]
    return getattr(torch.optim, chosen.kind)(groups, lr=config.peak_lr, fused=True, **chosen.options(config))


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate what the first step would, and change nothing: the state is then there while the passes run.

    Where memory is short this shows in a pass, after which a step can be repeated, and not in the update.
    """
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()  # the count of steps, and what weight decay has left in Adam's moments


def forget_step(scaler: torch.amp.GradScaler, wrapped: AcceleratedOptimizer) -> None:
    """Leave both as before a step that broke off between unscaling the gradients and `scaler.update`.

    Else the scaler takes the next gradients for unscaled ones, and a fused optimizer, which unscales them itself,
    divides by what is left on it as well (`GradScaler.step` of torch 2.15); and accelerate would take a step that is
    skipped for one that was taken.
    """
    optimizer = wrapped.optimizer
    wrapped._accelerate_step_called = False
    scaler._per_optimizer_states.clear()
    for left in ("grad_scale", "found_inf"):
        if hasattr(optimizer, left):
            delattr(optimizer, left)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group of `optimizer` the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
