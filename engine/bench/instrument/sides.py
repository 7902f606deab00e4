"""The sides of a comparison of networks: whose network, in which loop, layout and precision, each stated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

import archs
from archs.fused import set_fused
from archs.registry import options_of
from engine.bench.instrument.bare_loop import CLASSES, DTYPES, ReadyBatches, inference_step, training_step
from engine.bench.instrument.measure import Steps
from engine.bench.instrument.peers import build_peer, without_dropout
from engine.config import OptimConfig
from engine.step.optim import build_optimizer
from engine.step.plan import use_cuda

Mode = Literal["train", "inference"]


@dataclass(frozen=True)
class Side:
    """One contender, as its row states it."""

    network: str
    """"hcr:NAME" for ours, else the library's "library:model"."""
    precision: str
    """Under autocast; parameters are fp32."""
    channels_last: bool
    compile: str = ""
    """torch.compile's backend; empty is eager."""
    recompute: bool = False
    fused: str = "off"
    """Ours through the fused operators: off, on, or auto (where they were measured to be faster)."""
    auxiliary: bool = True
    """With its auxiliary heads, where it has any."""
    optimizer: str = "sgd"
    fused_optimizer: bool = True

    def stated(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def build_network(side: Side, image_size: int) -> nn.Module:
    """The side's network without dropout, on torch's default device, in training mode."""
    library, _, name = side.network.partition(":")
    if library != "hcr":
        return without_dropout(build_peer(side.network, CLASSES, image_size, side.auxiliary)).train()
    options = {"auxiliary": False} if not side.auxiliary and "auxiliary" in options_of(name) else {}
    model = without_dropout(archs.build(name, CLASSES, image_size=image_size, **options)).train()
    if side.fused != "off":
        set_fused(model, side.fused, "cuda" if use_cuda() else "cpu", archs.lookup(name).name)  # type: ignore[arg-type]
    if side.recompute:
        from engine.step.recompute import recompute_blocks

        recompute_blocks(model)
    return model


def contender(
    side: Side,
    mode: Mode,
    batch_size: int,
    image_size: int,
    device: torch.device,
    seconds: float,
    energy: Callable[[], float | None] | None = None,
    warmup: int = 3,
) -> Steps:
    """The side as steps that take turns of `seconds`; `mode` is what a step does."""
    torch.manual_seed(0)
    model = build_network(side, image_size).to(device)
    if side.channels_last:
        model = model.to(memory_format=torch.channels_last)
    autocast = DTYPES[side.precision]
    # Images arrive in the compute dtype where the loop is a tuned one, as from a loader; a plain loop casts nothing.
    batches = ReadyBatches(4, batch_size, image_size, autocast, device, side.channels_last)
    optimizer = None
    if mode == "train":
        optimizer = _optimizer(side, model)
        step: Callable[[int], Any] = training_step(model, optimizer, batches, autocast)
    else:
        step = inference_step(model.eval(), batches, autocast)
    if side.compile:
        model.compile(dynamic=False, backend=side.compile)
    held = partial(held_bytes, model, optimizer)
    return Steps(step, batch_size, device, seconds, warmup=warmup, held_bytes=held, energy=energy)


def _optimizer(side: Side, model: nn.Module) -> torch.optim.Optimizer:
    if side.fused_optimizer:
        return build_optimizer(model, OptimConfig(optimizer=side.optimizer))  # type: ignore[arg-type]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    return kinds[side.optimizer](model.parameters(), lr=0.001)


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of parameters, gradients, buffers and optimizer states: what stays between two steps."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for state in (optimizer.state if optimizer else {}).values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.device.type == "cuda")
