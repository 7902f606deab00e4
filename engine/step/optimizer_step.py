"""One optimizer step over this rank's share of a global batch, and the sums that are kept of it on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from engine.config import OptimConfig
from engine.step.loss import LossTerms, loss_and_hits
from engine.step.micro_batches import is_whole, micro_batches
from engine.step.optim import forget_step, set_learning_rate
from engine.step.plan import Plan
from engine.step.recompute import apply_policy, clear_policy
from engine.step.recorded.graph import StepGraph
from engine.step.sam import SharpnessAware
from engine.step.schedule import learning_rate
from engine.step.standing import Progress
from engine.step.sync_norm import counting
from engine.step.wrap import bare_module, eager_for_odd_shapes, set_partition


class OptimizerStep:
    """Takes steps by `plan`, with a model and an optimizer as `wrap` gave them.

    progress  where the run stands; it is read here, the training loop moves it on
    """

    def __init__(
        self,
        config: OptimConfig,
        plan: Plan,
        accelerator: Accelerator,
        model,
        optimizer,
        progress: Progress,
        steps_per_epoch: int,
    ) -> None:
        self.config, self.plan, self.accelerator = config, plan, accelerator
        self.model, self.optimizer = model, optimizer
        self.progress, self.steps_per_epoch = progress, steps_per_epoch
        self.sam = SharpnessAware(bare_module(model), config.sam) if config.sam else None
        self.span: Callable[[str], AbstractContextManager] = lambda part: nullcontext()
        """Around each part of a step, by its name: a profiler's range."""
        self.agree: Callable[..., None] = lambda batch, last: None
        """Called as (batch, last) after `batch`'s backward pass, before its gradients are used: ranks go on together or
        fail together. `last`: no other backward pass follows in this step."""
        self.rate: Callable[[int], float] = lambda step: learning_rate(
            progress.place(step), steps_per_epoch, config, progress.falls
        )
        """Learning rate of a 0-based step of the run: the schedule's, unless somebody looks for a rate."""
        self.used_rate = math.nan
        """Of the last step."""
        self.terms = LossTerms.of(config)
        """Which loss; whoever knows the images adds what it does about classes of unlike size."""
        self.teacher: Callable[[Any], Tensor] | None = None
        """From a batch to another network's logits [N, classes], where there is one to learn from."""
        self.meter = torch.zeros(7, dtype=torch.float64, device=accelerator.device)
        """Loss, hits, images, the first step with a bad loss, and three places for the training loop."""
        self._number = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        """The step's, counted from 1, where a recorded step reads it."""
        self._parameters = list(model.parameters())
        self.graph: StepGraph | None = None
        """Takes whole steps through a recording, where the plan says so."""
        if plan.cuda_graph:
            self.graph = StepGraph(
                self._launch, optimizer.optimizer, self.abandon, accelerator.device, plan.budget_bytes
            )

    def begin_epoch(self) -> None:
        """Nothing has been counted yet."""
        self.meter.zero_()
        self.meter[3] = math.inf

    def take(self, batch) -> None:
        """One step. With SAM the gradient is taken twice; what is counted is at the weights themselves."""
        if self.graph is not None:
            self.graph.prepare()
        self.used_rate = self.rate(self.progress.in_steps_of(self.steps_per_epoch))
        set_learning_rate(self.optimizer, self.used_rate)
        self._number.fill_(self.progress.step + 1)
        whole = self.graph is not None and is_whole(batch, self.plan)
        if self.graph is not None and not whole:
            self.graph.make_room()
        if self.graph is None or not whole or not self.graph.take(batch):
            self._launch(batch)

    def abandon(self) -> None:
        """Leave nothing of a step that broke off: its gradients, and how far it was."""
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        self.accelerator.step = 0
        if self.accelerator.scaler is not None:
            forget_step(self.accelerator.scaler, self.optimizer)

    def _launch(self, batch) -> None:
        """A step's work: what it reads of the host is the same for all batches of a kind (recorded.graph.kind_of)."""
        counted = self._gradient(batch, last=self.sam is None)
        if self.sam:
            with self.sam.moved():
                self.optimizer.zero_grad()
                self._gradient(batch)
        with self.span("optimizer"):
            self._clip()
            self.optimizer.step()
            self.optimizer.zero_grad()
        for part in counted:  # now that the step cannot fail any more
            self._count(*part)

    def switch(self, plan: Plan) -> None:
        """Go on under another plan of the same precision and ranks."""
        if plan.policy != self.plan.policy:
            model = bare_module(self.model)
            clear_policy(model)
            apply_policy(model, plan.policy)
            if plan.compile:
                set_partition(plan)
                torch._dynamo.reset()  # the compiled graphs are of the old policy
        self.plan = plan
        if self.graph is not None:
            self.graph.drop()
            self.graph = self.graph if plan.cuda_graph else None
        self.accelerator.gradient_accumulation_steps = plan.accumulation

    def _gradient(self, batch, last: bool = True) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Leave the gradient at the weights as they are; returns (loss, hits, weights) of each micro-batch.

        It is the mean over the global batch, exactly, whatever the split: each micro-batch adds its summed loss, times
        what accelerate, DeepSpeed and DDP divide by. An unreadable image leaves its rank's mean to the others of its
        share. `last`: no other gradient follows in this step.
        """
        plan, smoothing = self.plan, self.config.label_smoothing
        readable = batch.weights.sum().clamp(min=1.0)
        scale = batch.count / readable / batch.global_count * plan.ranks * plan.accumulation
        tail = not is_whole(batch, plan)
        counted = []
        lessons: tuple[Tensor, ...] = ()
        if self.teacher is not None:
            with self.span("teacher"):
                lessons = (self.teacher(batch),)
        for images, labels, weights, taught, valid in micro_batches(batch, plan, *lessons):
            with (
                self.accelerator.accumulate(self.model),
                eager_for_odd_shapes(plan.compile, tail),
                counting(self.model, valid),
            ):
                with self.span("forward"):
                    with plan.policy.around_forward(self._parameters):
                        output = self.model(images)
                    loss, hits = loss_and_hits(output, labels, weights, smoothing, self.terms, *taught)
                with self.span("backward"):
                    self.accelerator.backward(loss * scale)
                    del output
                    if self.accelerator.sync_gradients:
                        self.agree(batch, last)
            counted.append((loss.detach(), hits, weights))
        return counted

    def _clip(self) -> None:
        largest = self.config.clip_norm
        if largest and (self.plan.zero_stage == 0 or self.plan.fsdp):
            self.accelerator.clip_grad_norm_(self.model.parameters(), largest)

    def _count(self, loss: Tensor, hits: Tensor, weights: Tensor) -> None:
        """Add a micro-batch to the meter on the device: loss, hits, images, the first step with a bad loss."""
        self.meter[:3] += torch.stack([loss, hits, weights.sum()]).double()
        first = torch.where(loss.isfinite(), math.inf, self._number)
        self.meter[3] = torch.minimum(self.meter[3], first)
