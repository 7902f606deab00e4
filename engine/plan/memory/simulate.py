"""Optimizer steps of a network on FakeTensors; from the second one on they count.

The first step makes what later steps find: optimizer states. The loss, the optimizer, the autocast rules and the
recompute wrappers are the trainer's own, so what is counted is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from archs.own_file import OWN, in_its_file
from engine.config import OptimConfig
from engine.config.pixels.image_size import ImageSize, sides
from engine.plan.memory.fake import AnyNumber, autocast, backward, fake_copy, on_meta
from engine.plan.memory.replay import Replay
from engine.plan.memory.trace import PRIME, SECOND_FORWARD, Category, Trace, Unit
from engine.plan.memory.tracker import DeviceModel, Tracker
from engine.step.ema import WeightAverage
from engine.step.finetune import model_name
from engine.step.loss import Distillation, LossTerms, loss_and_hits
from engine.step.optim import build_optimizer
from engine.step.recompute import Policy, apply_policy, clear_policy
from engine.step.sam import SharpnessAware

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.bfloat16}
"""What stands for a precision: fp16 has bf16's bytes and autocast rules, and the CPU's autocast always knows bf16."""


class Untraceable(RuntimeError):
    """A network that FakeTensors cannot run; the message has the operator's name and what to do instead."""


@dataclass(frozen=True)
class Step:
    """What is simulated, beside the network."""

    image_size: ImageSize
    num_classes: int
    precision: str = "fp32"
    optim: OptimConfig = field(default_factory=OptimConfig)
    policy: Policy = field(default_factory=Policy)
    channels_last: bool = True
    gradients_kept: bool = False
    """Gradients are there before the backward pass: a later micro-batch of a step, or DDP's buckets."""
    channels: int = 3
    """Of the images."""
    cuda: bool = True
    """A GPU's autocast rules; off for a comparison with a run on a CPU."""


class Simulator:
    """One network without memory whose steps are recorded one after the other, each under its own policy.

    device   what the device allocates beside the operators' results; None is nothing
    teacher  builds a network whose logits are learnt
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        optim: OptimConfig | None = None,
        channels_last: bool = True,
        device: DeviceModel | None = None,
        teacher: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.build, self.optim, self.channels_last, self.device = build, optim or OptimConfig(), channels_last, device
        self.teacher = teacher
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._replay: Replay | None = Replay(self._mode)
        self._stepper = self._network()

    def _network(self) -> Stepper:
        model, teacher = on_meta(self.build), None if self.teacher is None else on_meta(self.teacher)
        with self._mode:
            taught_by = None if teacher is None else fake_copy(teacher, self.channels_last)
            return Stepper(fake_copy(model, self.channels_last), self.optim, taught_by)

    def record(self, step: Step, only: int = 0) -> Trace:
        """One training step without memory or arithmetic; the first call runs one more before it.

        only  the record is of micro-batches of this size; 0 is of any size. What a partition keeps depends on it

        Raises Untraceable where an operator has no FakeTensor rule.
        """
        unit = 0 if only else PRIME
        try:
            with self._mode:
                trace = self._stepper.record(step, only or PRIME, Tracker(unit, self.device, self._replay))
            return trace.of_micro_batches(only) if only else trace
        except Untraceable:  # it left the network half done
            self._stepper = self._network()
            raise


def simulate(
    build: Callable[[], nn.Module],
    step: Step,
    device: DeviceModel | None = None,
    teacher: Callable[[], nn.Module] | None = None,
) -> Trace:
    """Record one training step of `build()`'s network; the only one of a Simulator."""
    return Simulator(build, step.optim, step.channels_last, device, teacher).record(step)


def run_step(model: nn.Module, step: Step, batch: int, tracker: Tracker, teacher: nn.Module | None = None) -> Trace:
    """Two optimizer steps of `model` under `tracker` on images of the ambient kind, fake or real."""
    return Stepper(model, step.optim, teacher).record(step, batch, tracker)


class Stepper:
    """A network and its optimizer, on tensors of the ambient kind: fake or real."""

    def __init__(self, model: nn.Module, optim: OptimConfig, teacher: nn.Module | None = None) -> None:
        self.model, self.optim = model, optim
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.optimizer = build_optimizer(model, optim)
        self.average = WeightAverage(model, optim.ema) if optim.ema else None
        self.sam = SharpnessAware(model, optim.sam) if optim.sam else None
        self._forward: Callable[[Tensor], Any] = model

    def record(self, step: Step, batch: int, tracker: Tracker) -> Trace:
        """Run a step of `batch` images under `tracker`; the optimizer's first step runs uncounted before it.

        Raises Untraceable where an operator fails.
        """
        units = list(self.model.blocks()) if hasattr(self.model, "blocks") else []
        watch = UnitWatch(tracker, units)
        apply_policy(self.model, step.policy)
        if step.policy.kind == "none":
            watch.attach()
        images = torch.zeros(batch, step.channels, *sides(step.image_size), dtype=DTYPES[step.precision])
        images = images.to(memory_format=torch.channels_last) if step.channels_last else images
        labels, weights = torch.zeros(batch, dtype=torch.long), torch.ones(batch)
        if step.policy.partition:
            self._compile(step, tracker, images, labels, weights)
        tracker.hold([*self.model.parameters(), *self.model.buffers()], Category.PARAMETERS)
        tracker.hold(self._states(), Category.OPTIMIZER)
        tracker.hold(self.average.tensors() if self.average else (), Category.AVERAGE)
        tracker.hold(self.sam.tensors() if self.sam else (), Category.KEPT)
        tracker.hold([images, labels, weights], Category.INPUT)
        taught_by = self.teacher or nn.Identity()
        tracker.hold([*taught_by.parameters(), *taught_by.buffers()], Category.TEACHER)
        first = not any(self.optimizer.state.values())
        try:
            with tracker:
                if first:
                    self._step(step, tracker, images, labels, weights)
                elif step.gradients_kept:
                    for parameter in filter(lambda one: one.requires_grad, self.model.parameters()):
                        parameter.grad = torch.zeros_like(parameter)
                    tracker.settle([parameter.grad for parameter in self.model.parameters()], Category.GRADIENTS)
                tracker.begin()
                watch.begin()
                tracker.mark("forward")
                self._step(step, tracker, images, labels, weights)
        except Exception as error:
            name, failed = model_name(self.model), tracker.running or "code between operators"
            told = in_its_file(error, name.rpartition(":")[0] if OWN.search(name) else None)
            raise Untraceable(f"{name} cannot be simulated: {failed} failed on FakeTensors ({told})") from error
        trace = tracker.trace()
        trace.units = watch.units(trace)
        self.optimizer.zero_grad()
        clear_policy(self.model)
        self._forward = self.model
        return trace

    def _compile(self, step: Step, tracker: Tracker, images: Tensor, labels: Tensor, weights: Tensor) -> None:
        """From now on run the partitioned graphs; an uncounted step makes them. Raises Untraceable."""
        from engine.plan.memory.compiled import Compiled

        self._forward = compiled = Compiled(self.model, step.policy.partition)
        try:
            self._step(step, Tracker(batch=tracker.batch), images, labels, weights)
        except Exception as error:
            raise Untraceable(f"{model_name(self.model)} has no graph for torch.compile ({error})") from error
        compiled.tracker = tracker

    def _states(self) -> Iterator[Tensor]:
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def _step(self, step: Step, tracker: Tracker, images: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Gradient and update as in `Trainer._step`."""
        counted = self._gradient(step, tracker, images, labels, weights)
        if self.sam:
            tracker.mark("ascent")
            with self.sam.moved():
                if not step.gradients_kept:
                    self.optimizer.zero_grad()
                tracker.mark(SECOND_FORWARD)
                self._gradient(step, tracker, images, labels, weights, again=" again")
                tracker.mark("optimizer")
        else:
            tracker.mark("optimizer")
        with AnyNumber() if tracker.batch else nullcontext():
            self.optimizer.step()
        tracker.settle(self._states(), Category.OPTIMIZER)
        if not step.gradients_kept:
            self.optimizer.zero_grad()
        if self.average:
            self.average.update()
        del counted  # the trainer counts at the end

    def _gradient(
        self, step: Step, tracker: Tracker, images: Tensor, labels: Tensor, weights: Tensor, again: str = ""
    ) -> tuple[Tensor, Tensor]:
        """Forward, loss, backward as in `Trainer._gradient`: accelerate autocasts the network's forward alone."""
        dtype, parameters = DTYPES[step.precision], list(self.model.parameters())
        taught = None
        if self.teacher is not None:
            with torch.no_grad(), autocast(dtype, step.cuda):
                taught = self.teacher(images).float()
        with step.policy.around_forward(parameters, fake=tracker.batch > 0), autocast(dtype, step.cuda):
            output = self._forward(images)
        output = output if dtype == torch.float32 else _widen(output)
        terms = LossTerms.of(self.optim, None, weights.new_zeros(step.num_classes) if self.optim.logit_adjust else None)
        terms = terms if taught is None else replace(terms, distillation=Distillation("logits", 3.0, 0.5))
        loss, hits = loss_and_hits(output, labels, weights, self.optim.label_smoothing, terms, taught)
        scaled = loss * 1.0
        tracker.settle_alive(Category.SAVED)
        tracker.mark(f"backward{again}")
        backward(scaled, step.cuda)
        tracker.settle([parameter.grad for parameter in parameters], Category.GRADIENTS)
        return loss.detach(), hits


def _widen(output):
    """A network's output in fp32."""
    if isinstance(output, Tensor):
        return output.float()
    logits, auxiliary, weights = output
    return type(output)(logits.float(), tuple(extra.float() for extra in auxiliary), weights)


class UnitWatch:
    """Tells a tracker which unit of recompute is running, and what each unit's output is; in a step's first pass."""

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

    @property
    def _second(self) -> bool:
        return bool(self.tracker.marks) and self.tracker.marks[-1][1] == SECOND_FORWARD

    def _enter(self, index: int, *_: object) -> None:
        self.tracker.unit = -1 if self._second else index

    def _leave(self, index: int, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.tracker.unit = -1
        row = self.tracker._index(output) if isinstance(output, Tensor) else None
        if row is not None and not self._second:
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
