"""Optimizers, their parameter groups, and their state."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine.config import OptimConfig, require
from engine.config.optimizers import OPTIMIZERS, table_row
from engine.step.finetune import rate_scales

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer


def parameter_groups(model: nn.Module, weight_decay: float, scales: Mapping[int, float] | None = None) -> list[dict]:
    """Weights with decay; biases and normalisation parameters without (He et al. 2018, arXiv:1812.01187).

    scales  id of a parameter -> its learning rate over the run's, as `rate_scales`: a pair of groups a scale, which
            they keep as "lr_scale"
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for parameter in trained:
            if (parameter.ndim > 1) == decayed:
                groups.setdefault(((scales or {}).get(id(parameter), 1.0), decayed), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if decayed else 0.0, **({"lr_scale": scale} if scales else {})}
        for (scale, decayed), members in groups.items()
    ]


def build_optimizer(
    model: nn.Module, config: OptimConfig, one_group: bool = False, parts: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of `config` over `model`'s parameters.

    one_group  not one with weight decay and one without: for DeepSpeed in fp16, without weight decay
    parts      the parameters become FSDP2's, for which torch has not all fused kernels (2.15: none of SGD's)

    Raises ConfigError for rates by layer in one group.
    """
    chosen, scales = OPTIMIZERS[config.optimizer], rate_scales(model, config)
    require(
        not (one_group and scales),
        "--optim.backbone-lr and --optim.layer-decay give each layer its own rate, and DeepSpeed in fp16 knows one "
        "for all; use --precision bf16",
    )
    groups = parameter_groups(model, config.weight_decay, scales)
    if one_group:
        groups = [{"params": [one for group in groups for one in group["params"]], "weight_decay": 0.0}]
    for group in groups:
        group["lr"] = config.peak_lr * group.get("lr_scale", 1.0)
    kind = chosen.load()
    known = inspect.signature(kind).parameters
    # One kernel over all parameters, and in fp16 the overflow check stays on the device; else a few kernels over lists
    # of them, on every device: a plan made on a CPU then counts the temporary tensors of a GPU's update.
    way = next(({name: True} for name in ("fused", "foreach")[parts:] if name in known), {})
    optimizer = kind(groups, lr=config.peak_lr, **way, **chosen.arguments(config))
    if chosen.schedule_free:
        optimizer.train()
    return optimizer


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate what the first step would, and change nothing: the state is then there while the passes run.

    Where memory is short this shows in a pass, after which a step can be repeated, and not in the update. And torch's
    fused SGD begins its momentum in memory that nothing wrote: a first step that fp16's scaler skips leaves it so, and
    the second adds it to the weights (seen on an H200 with torch 2.11, on the emulated card with 2.15). Begun here it
    is zero.
    """
    if any(optimizer.state.values()):
        return
    groups = optimizer.param_groups
    kept = [copy.deepcopy({name: value for name, value in group.items() if name != "params"}) for group in groups]
    for group in groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, before in zip(groups, kept, strict=True):  # some count steps in their groups
        for name in group.keys() - before.keys() - {"params"}:
            del group[name]
        group.update(before)
    row = table_row(type(optimizer))
    begins = row.begins if row else {}
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value):  # the count of steps, and what weight decay has left in Adam's moments
                first = begins.get(name, 0.0)
                value.copy_(parameter.detach()) if first is None else value.fill_(first)


def state_elements(model: nn.Module, config: OptimConfig) -> int:
    """Numbers that the optimizer keeps for what is trained of `model`, which may lie on the meta device."""
    chosen = OPTIMIZERS[config.optimizer]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not chosen.uneven:
        return chosen.states * sum(parameter.numel() for parameter in trained)
    shapes = nn.ParameterList(nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in trained)
    optimizer = chosen.load()(shapes.parameters(), lr=config.peak_lr, **chosen.arguments(config))
    allocate_state(optimizer)
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(value.numel() for value in kept if value.device.type == "meta")


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


def make_recordable(optimizer: torch.optim.Optimizer) -> None:
    """Have rate and count of steps on the device, where a CUDA graph that recorded a step reads them anew each time."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device, copy=True)
        if "capturable" in group:
            group["capturable"] = True
    for parameter, state in optimizer.state.items():
        if torch.is_tensor(count := state.get("step")):
            state["step"] = count.to(parameter.device)


def plain_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict as a run that records nothing has it."""
    state = optimizer.state_dict()
    plain = [
        {**group, "lr": float(group["lr"])} | ({"capturable": False} if "capturable" in group else {})
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": plain}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group of `optimizer` the learning rate `rate`, times its own scale where it has one."""
    for group in optimizer.param_groups:
        own = rate * group.get("lr_scale", 1.0)
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
