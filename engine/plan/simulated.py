"""A workload's step, recorded once a policy and read as the bytes and the time of any way to run it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Self

from torch import nn

from archs.fused import Fusable
from engine.config.optimizers import OPTIMIZERS
from engine.plan.memory.cost import NOMINAL, seconds
from engine.plan.memory.cuda import CudaModel, loader_bytes
from engine.plan.memory.fake import on_meta
from engine.plan.memory.sharding import PERSISTENT, Parameters, Sharding, shard
from engine.plan.memory.simulate import Simulator, Step
from engine.plan.memory.trace import Category, Timeline, Trace, Unit
from engine.plan.workload import Candidate, Workload
from engine.step.plan import function_changes
from engine.step.recompute import Policy

FEWEST_FOR_NORM = 16
"""Images under which BatchNorm's error grows: 23.7 % at 16, 24.8 at 8, 27.3 at 4 and 34.7 at 2 on ImageNet (Wu & He
2018, arXiv:1803.08494, table 2). Smaller micro-batches are taken where nothing else fits."""


class Simulated:
    """What candidates of a workload need and cost, each policy recorded once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._simulator = Simulator(
            workload.build, workload.optim, workload.channels_last, CudaModel() if workload.cuda else None
        )
        self._traces: dict[tuple[bool, Policy, int], Trace] = {}
        self._variants: dict[tuple[str, Policy, bool, int], Trace] = {}
        model = on_meta(workload.build)
        self.norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        self.normalised = self.norms > 0
        self.fewest = 2 if self.normalised else 1
        """Images of the smallest micro-batch: BatchNorm cannot take one where its map is a single pixel."""
        self.units = len(list(model.blocks())) if hasattr(model, "blocks") else 0
        self.fusable = any(isinstance(module, Fusable) and module.fused == "off" for module in model.modules())
        sizes = [parameter.numel() for parameter in model.parameters()]
        self.parameters = Parameters(
            total=sum(sizes),
            largest=max(sizes, default=0),
            small=sum(size for size in sizes if size <= PERSISTENT),
            states=OPTIMIZERS[workload.optim.optimizer].states,
        )

    def under(self, zero_stage: int) -> Self:
        """The same search under another ZeRO stage; recordings are shared."""
        other = copy.copy(self)
        other.workload = replace(self.workload, zero_stage=zero_stage)
        return other

    def trace(self, precision: str, policy: Policy, kept: bool = False, only: int = 0) -> Trace:
        """The recording of a step; fp16 and bf16 share one, and so do gradients that are kept or not.

        only  the micro-batch that it is of, as in `Simulator.record`

        Raises Untraceable.
        """
        key, load = (precision != "fp32", policy, only), self.workload
        if key not in self._traces:
            size, classes = load.image_size, load.num_classes
            step = Step(size, classes, precision, load.optim, policy, load.channels_last, cuda=load.cuda)
            self._traces[key] = self._simulator.record(step, only)
        variant = precision, policy, kept, only
        if variant not in self._variants:
            trace = self._traces[key]
            trace = trace.in_bf16() if precision == "bf16" else trace
            self._variants[variant] = trace.with_gradients_kept() if kept else trace
        return self._variants[variant]

    def _recorded(self, precision: str, policy: Policy, micro: int, accumulation: int) -> Trace:
        """The recording of such a micro-batch."""
        kept = accumulation > 1 or self.workload.ranks > 1
        return self.trace(precision, policy, kept, self._only(precision, policy, micro))

    def _only(self, precision: str, policy: Policy, micro: int) -> int:
        """The micro-batch, where there is a recording of it and of no other; else 0."""
        return micro if (precision != "fp32", policy, micro) in self._traces else 0

    def watched(self, precision: str) -> list[Unit]:
        """The network's units with their bytes."""
        return self.trace(precision, Policy()).units

    def timeline(self, precision: str, policy: Policy, micro: int, accumulation: int, cap: int) -> Timeline:
        """The step on one GPU, everything included that the device has to hold."""
        load = self.workload
        timeline = self._recorded(precision, policy, micro, accumulation).timeline(micro, load.share, cap)
        live, allocator = timeline.live, timeline.peak
        if load.ranks > 1 or load.zero_stage or load.offload_optimizer:
            sharded = self._sharding()
            for category in (Category.PARAMETERS, Category.GRADIENTS, Category.OPTIMIZER):
                live[category] = sharded.static[category]
            live[Category.COMMUNICATION] += sharded.static[Category.COMMUNICATION] + load.nccl
        live[Category.WORKSPACE] += (load.correction - 1) * allocator
        if load.cuda:
            live[Category.WORKSPACE] += load.device.cublas
            live[Category.ROUNDING] += load.device.fragmentation * allocator
            live[Category.CONTEXT] += load.device.context
            if load.prefetch >= 0:
                half = precision == "fp16"
                live[Category.LOADER] += loader_bytes(load.share, load.image_size, load.prefetch, half)
        return timeline

    def step_of(self, found: Candidate, cap: int) -> Timeline:
        """The step of a candidate of this search, or of one under another ZeRO stage."""
        search = self.under(found.zero_stage)
        return search.timeline(found.precision, found.policy, found.micro, found.accumulation, cap)

    def _sharding(self) -> Sharding:
        return shard(self.parameters, self.workload.ranks, self.workload.zero_stage, self.workload.offload_optimizer)

    def candidate(self, precision: str, policy: Policy, accumulation: int, cap: int) -> Candidate:
        """What a step in `accumulation` micro-batches needs and costs."""
        load = self.workload
        micro = -(-load.share // accumulation)
        timeline = self.timeline(precision, policy, micro, accumulation, cap)
        predicted = timeline.by_category()
        outside = (Category.CONTEXT, Category.LOADER)
        allocated = sum(size for category, size in predicted.items() if category not in outside)
        if load.cuda:
            recorded = self._recorded(precision, policy, micro, accumulation).peak(micro, load.share, cap)
            allocated -= int(load.device.fragmentation * recorded) + load.nccl
        changed = function_changes(
            self.normalised, load.global_batch, micro, accumulation, load.ranks, load.sync_bn and load.ranks > 1
        )
        split = self.normalised and accumulation > 1
        return Candidate(
            precision,
            micro,
            accumulation,
            policy,
            predicted,
            allocated,
            self._seconds(precision, policy, micro, accumulation),
            changed,
            tier=split + 2 * policy.offload,
            small_norm=split and micro * (load.ranks if load.sync_bn else 1) < FEWEST_FOR_NORM,
            zero_stage=load.zero_stage,
        )

    def _seconds(self, precision: str, policy: Policy, micro: int, accumulation: int) -> float:
        load, rates = self.workload, NOMINAL
        gradients = 2 if load.optim.sam else 1
        passes = gradients * accumulation
        only = self._only(precision, policy, micro)
        total = seconds(self.trace(precision, policy, only=only).operators, micro, accumulation, precision != "fp32")
        if policy.offload:  # out and back again, in no kernel's shadow
            kept = self.trace(precision, replace(policy, offload=False)).saved(micro)
            total += 2 * kept * passes / rates.host
        if load.offload_optimizer:
            total += 2 * 4 * self.parameters.total / rates.host
        if load.ranks > 1:
            total += gradients * self._sharding().traffic / rates.network
            total += 2 * self.norms * passes * rates.collective if load.sync_bn else 0
        return total
