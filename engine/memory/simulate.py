"""Two optimizer steps of a network on FakeTensors; the second one counts.

The first step makes what later steps find: optimizer states. The loss, the optimizer, the autocast rules and the
recompute wrappers are the trainer's own, so what is counted is what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.config import OptimConfig
from engine.loss import loss_and_hits
from engine.memory.fake import autocast, fake_copy, on_meta
from engine.memory.trace import PRIME, Category, Trace, Unit
from engine.memory.tracker import DeviceModel, Tracker
from engine.optim import build_optimizer
from engine.recompute import Policy, apply_policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.bfloat16}
"""What stands for a precision: fp16 has bf16's bytes and autocast rules, and the CPU's autocast always knows bf16."""


class Untraceable(RuntimeError):
    """A network that FakeTensors cannot run; the message has the operator's name and what to do instead."""


@dataclass(frozen=True)
class Step:
    """What is simulated, beside the network."""

    image_size: int
    num_classes: int
    precision: str = "fp32"
    optim: OptimConfig = field(default_factory=OptimConfig)
    policy: Policy = field(default_factory=Policy)
    channels_last: bool = True
    gradients_kept: bool = False
    """Gradients are there before the backward pass: a later micro-batch of a step, or DDP's buckets."""
    full_warm_up: bool = True
    """The first step is a whole one; else only the optimizer's states are made, which is all that it leaves."""
    cuda: bool = True
    """A GPU's autocast rules; off for a comparison with a run on a CPU."""


def simulate(build: Callable[[], nn.Module], step: Step, device: DeviceModel | None = None) -> Trace:
    """Record one training step of `build()`'s network without memory or arithmetic.

    device  what the device allocates beside the operators' results; None is nothing

    Raises Untraceable where an operator has no FakeTensor rule.
    """
    model = on_meta(build)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake_copy(model, step.channels_last)
        return run_step(model, step, PRIME, Tracker(PRIME, device))


def run_step(model: nn.Module, step: Step, batch: int, tracker: Tracker) -> Trace:
    """Two optimizer steps of `model` under `tracker` on images of the ambient kind, fake or real."""
    dtype = DTYPES[step.precision]
    units = list(model.blocks()) if hasattr(model, "blocks") else []
    watch = UnitWatch(tracker, units)
    apply_policy(model, step.policy)
    if step.policy.kind == "none":
        watch.attach()
    images = torch.zeros(batch, 3, step.image_size, step.image_size, dtype=dtype)
    images = images.to(memory_format=torch.channels_last) if step.channels_last else images
    labels, weights = torch.zeros(batch, dtype=torch.long), torch.ones(batch)
    optimizer = build_optimizer(model, step.optim)
    tracker.hold([*model.parameters(), *model.buffers()], Category.PARAMETERS)
    tracker.hold([images, labels, weights], Category.INPUT)

    def micro_step(forward_done: Callable[[], None]) -> None:
        """Forward, loss and backward as in `Trainer._step`: accelerate autocasts the network's forward alone."""
        kept = list(model.parameters())
        with step.policy.around_forward(kept, fake=tracker.batch > 0), autocast(dtype, step.cuda):
            output = model(images)
        output = output if dtype == torch.float32 else _widen(output)
        loss, _ = loss_and_hits(output, labels, weights, step.optim.label_smoothing)
        scaled = loss * 1.0
        forward_done()
        scaled.backward()

    def forward_done() -> None:
        tracker.settle_alive(Category.SAVED)
        tracker.mark("backward")

    def update() -> None:
        tracker.settle([parameter.grad for parameter in model.parameters()], Category.GRADIENTS)
        tracker.mark("optimizer")
        optimizer.step()
        states = (value for state in optimizer.state.values() for value in state.values())
        tracker.settle((value for value in states if isinstance(value, Tensor)), Category.OPTIMIZER)
        if not step.gradients_kept:
            optimizer.zero_grad()

    try:
        with tracker:
            if step.full_warm_up:
                micro_step(forward_done)
            else:
                for parameter in model.parameters():
                    parameter.grad = torch.empty_like(parameter)
            update()
            tracker.begin()
            watch.begin()
            tracker.mark("forward")
            micro_step(forward_done)
            update()
    except Exception as error:
        raise Untraceable(
            f"{type(model).__name__} cannot be simulated: {tracker.running} failed on FakeTensors ({error})"
        ) from error
    trace = tracker.trace()
    trace.units = watch.units(trace)
    return trace


def _widen(output):
    """A network's output in fp32."""
    if isinstance(output, Tensor):
        return output.float()
    logits, auxiliary, weights = output
    return type(output)(logits.float(), tuple(extra.float() for extra in auxiliary), weights)


class UnitWatch:
    """Tells a tracker which unit of recompute is running, and what each unit's output is."""

    def __init__(self, tracker: Tracker, units: list[nn.Module]) -> None:
        self.tracker, self.modules = tracker, units
        self.outputs: dict[int, tuple[int, int]] = {}
        """Unit -> (row of its output's storage, bytes of it)."""
        self._handles: list = []
        self._first_row = 0

    def attach(self) -> None:
        """Watch from now on."""
        for index, unit in enumerate(self.modules):
            self._handles += [
                unit.register_forward_pre_hook(partial(self._enter, index)),
                unit.register_forward_hook(partial(self._leave, index)),
            ]

    def _enter(self, index: int, *_: object) -> None:
        self.tracker.unit = index

    def _leave(self, index: int, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.tracker.unit = -1
        row = self.tracker._index(output) if isinstance(output, Tensor) else None
        if row is not None:
            self.outputs[index] = row, output.untyped_storage().nbytes()

    def begin(self) -> None:
        """The step that counts begins."""
        self._first_row = len(self.tracker.storages.nbytes)
        self.outputs.clear()
        self.tracker.unit_flops.clear()
        self.tracker.forward_reads.clear()

    def units(self, trace: Trace) -> list[Unit]:
        """What each unit keeps; empty where they were not watched."""
        for handle in self._handles:
            handle.remove()
        if not self._handles or len(self.outputs) != len(self.modules):
            return []
        born = self.tracker.storages.unit
        batch = self.tracker.batch or 1
        rows = {row for row, _ in self.outputs.values()}
        inner = [0.0] * len(self.modules)
        for row, unit in enumerate(born):
            if row >= self._first_row and unit >= 0 and trace.category[row] == Category.SAVED and row not in rows:
                inner[unit] += self.tracker.storages.nbytes[row] / batch
        found, last = [], len(self.modules) - 1
        for index, (row, nbytes) in sorted(self.outputs.items()):
            behind = max(other for other, (shared, _) in self.outputs.items() if shared == row) + 1
            readers = self.tracker.forward_reads.get(row, set())
            found.append(
                Unit(
                    name=f"{index}",
                    inner=inner[index],
                    output=nbytes / batch,
                    flops=self.tracker.unit_flops.get(index, 0) / batch,
                    tapped=index < last and not readers <= set(range(index, behind + 1)),
                )
            )
        return found
