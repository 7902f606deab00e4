"""A training state under names that do not depend on how it is spread: FSDP2's, ZeRO's and one process's are the same.

`parts_of` gives what this rank holds of it, `load_parts` takes it whole and keeps this rank's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.recovery.shards import FOLDER, Part, Shards

Source = Callable[[str], Tensor]
"""From a tensor's name to all of it, on the CPU; KeyError where it is not there."""


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Part]:
    """This rank's parts of the parameters, buffers and optimizer states, copied to the host.

    What all ranks hold alike is the first one's.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    return [part for name, tensor in _named(model, optimizer) if (part := _part(name, tensor, first)) is not None]


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        yield f"model.{name}", tensor
    for name, state in _states(model, optimizer):
        for key, value in state.items():
            if isinstance(value, Tensor):
                yield f"optimizer.{name}.{key}", value


def _states(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, state) of each parameter that the optimizer has taken a step with."""
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            yield name, optimizer.state[parameter]


def _part(name: str, tensor: Tensor, first: bool) -> Part | None:
    if not isinstance(tensor, DTensor):
        return Part(name, host_copy(tensor), (0,) * tensor.ndim) if first else None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, begins = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    local = tensor.to_local()
    return Part(name, host_copy(local), tuple(begins)) if local.numel() else None


def host_copy(tensor: Tensor) -> Tensor:
    """In host memory of its own."""
    return tensor.detach().to("cpu", copy=True)


def same_shape(name: str, source: Source, shape: torch.Size) -> Tensor:
    """A whole tensor of `source`. Raises KeyError where it is missing, ValueError where it has another shape."""
    whole = source(name)
    if whole.shape != shape:
        raise ValueError(f"{name} is {list(whole.shape)} there and {list(shape)} here")
    return whole


@torch.no_grad()
def load_parts(source: Source, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer, whose states are allocated, from whole tensors.

    Raises KeyError for one that is missing, ValueError for one of another shape.
    """
    for name, tensor in _named(model, optimizer):
        whole = same_shape(name, source, tensor.shape)
        if isinstance(tensor, DTensor):
            mine = whole.to(tensor.device, tensor.dtype)
            tensor.to_local().copy_(
                distribute_tensor(mine, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
            )
        else:
            tensor.copy_(whole)


COUNT = "step"
"""What some optimizers count once for a group and not beside each parameter (timm's Adan)."""


def count_of(optimizer: torch.optim.Optimizer) -> int | None:
    """Steps that it has counted for all its groups; None where it counts none there."""
    count = optimizer.param_groups[0].get(COUNT)
    return None if count is None else int(count)


def restore_count(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back what `count_of` gave, or what one process wrote, into all groups, however many there are here."""
    groups = state["optimizer"]["param_groups"] if "optimizer" in state else [{}]
    count = state.get("optimizer_count", groups[0].get(COUNT))
    if count is not None:
        for group in optimizer.param_groups:
            group[COUNT] = int(count)


def optimizer_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters that `optimizer` has, in the order in which its state dict counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def source_of(folder: Path, state: dict[str, Any], ordered: list[str]) -> Source:
    """Where a checkpoint's tensors are: in its shards, or in the `state` of its trainer.pt, as one process wrote it.

    ordered  as `optimizer_order` gives it
    """
    if (folder / FOLDER).is_dir():
        return Shards(folder / FOLDER).whole
    known = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    for place, own in state["optimizer"]["state"].items():
        known |= {f"optimizer.{ordered[place]}.{key}": value for key, value in own.items()}
    return known.__getitem__
