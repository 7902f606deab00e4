"""A workload's step, recorded once a policy and read as the bytes and the time of any way to run it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Self

from torch import nn

from archs.fused import Fusable
from engine.plan.memory.allocator import least_memory, replay
from engine.plan.memory.cost import NOMINAL, seconds
from engine.plan.memory.cuda import CudaModel
from engine.plan.memory.fake import on_meta
from engine.plan.memory.requests import Requests, requests_of
from engine.plan.memory.sharding import PERSISTENT, Parameters, Sharding, shard
from engine.plan.memory.simulate import Simulator, Step
from engine.plan.memory.trace import Category, Timeline, Trace, Unit
from engine.plan.workload import Candidate, Workload
from engine.step.finetune import is_frozen
from engine.step.optim import state_elements
from engine.step.plan import function_changes
from engine.step.recompute import Policy

FEWEST_FOR_NORM = 16
"""Images under which BatchNorm's error grows: 23.7 % at 16, 24.8 at 8, 27.3 at 4 and 34.7 at 2 on ImageNet (Wu & He
2018, arXiv:1803.08494, table 2). Smaller micro-batches are taken where nothing else fits."""

TYPICAL = 0.05
"""Share of the allocator's peak that its holes take under recompute, for candidates that are too large without it."""
UNORDERED = 0.015
"""Share of memory for what a replay cannot know under offload: autocast's copies and saved tensors are freed in no
fixed order, and behind maps of 1.5 GiB another order wants other holes. resnext29_8x64d in 8 × 16 images needed 1.2 %
more on torch's allocator than in the order that was replayed (`engine.bench.allocator_check`)."""


class Simulated:
    """What candidates of a workload need and cost, each policy recorded once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        model = CudaModel() if workload.cuda and workload.device.workspaces else None
        self._simulator = Simulator(workload.build, workload.optim, workload.channels_last, model, workload.teacher)
        self.within = 0
        """Candidates whose tensors alone are above this budget are not replayed; 0 replays all."""
        self._fragmentation: dict[tuple, int] = {}
        self._traces: dict[tuple[bool, Policy, int], Trace] = {}
        self._variants: dict[tuple[str, Policy, bool, int], Trace] = {}
        network = on_meta(workload.build)
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.norms = sum(not is_frozen(module) for module in norms)
        self.normalised = self.norms > 0
        self.fewest = 2 if self.normalised else 1
        """Images of the smallest micro-batch: BatchNorm cannot take one where its map is a single pixel."""
        self.units = len(list(network.blocks())) if hasattr(network, "blocks") else 0
        self.fusable = any(isinstance(module, Fusable) and module.fused == "off" for module in network.modules())
        sizes = [parameter.numel() for parameter in network.parameters()]
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        self.parameters = Parameters(
            total=sum(sizes),
            largest=max(sizes, default=0),
            small=sum(size for size in sizes if size <= PERSISTENT),
            trained=trained,
            states=state_elements(network, workload.optim) / max(1, trained),
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
            step = Step(
                size, classes, precision, load.optim, policy, load.channels_last, channels=load.channels, cuda=load.cuda
            )
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

    def timeline(
        self, precision: str, policy: Policy, micro: int, accumulation: int, cap: int, within: int = 0
    ) -> Timeline:
        """The step on one GPU, everything included that the device has to hold.

        within  a budget: where the tensors alone are above it, what the allocator loses is not replayed; 0 is none
        """
        timeline, allocator = self.tensors(precision, policy, micro, accumulation, cap)
        if self.workload.cuda:
            if within and timeline.peak > within:
                timeline.live[Category.FRAGMENTATION] += TYPICAL * allocator
            else:
                lost = self.fragmentation(precision, policy, micro, accumulation, cap)
                timeline.live[Category.FRAGMENTATION] += lost
        return timeline

    def tensors(self, precision: str, policy: Policy, micro: int, accumulation: int, cap: int) -> tuple[Timeline, int]:
        """(the step without what the allocator loses, the peak of what operators alone allocate in it)."""
        load = self.workload
        timeline = self._recorded(precision, policy, micro, accumulation).timeline(micro, load.share, cap)
        live, allocator = timeline.live, timeline.peak
        if load.ranks > 1 or load.zero_stage or load.offload_optimizer:
            sharded = self._sharding()
            for category in (Category.PARAMETERS, Category.GRADIENTS, Category.OPTIMIZER):
                live[category] = sharded.static[category]
            live[Category.COMMUNICATION] += sharded.static[Category.COMMUNICATION] + load.nccl
        factors = load.factors(precision, policy)
        live[Category.WORKSPACE] += (factors.workspace - 1) * allocator
        if load.cuda:
            batch, workspaces = load.recording(precision, policy)
            live[Category.INPUT] += batch + load.feed.resident
            live[Category.WORKSPACE] += load.device.cublas + workspaces
            live[Category.CONTEXT] += load.device.outside + factors.context
            live[Category.LOADER] += load.feed.device_bytes(load.share, load.image_size, precision == "fp16")
            live[Category.FRAGMENTATION] += (factors.fragmentation - 1) * allocator
        return timeline, allocator

    def requests(self, precision: str, policy: Policy, micro: int, accumulation: int, cap: int) -> Requests:
        """What a run asks of torch's allocator: its start and some steps."""
        load = self.workload
        return requests_of(
            self.trace(precision, policy, only=self._only(precision, policy, micro)),
            micro,
            load.share,
            cap,
            accumulation,
            bucketed=load.ranks > 1,
            fixed=[load.device.cublas],
            staged=load.feed.staged_bytes(load.share, load.image_size, precision),
        )

    def fragmentation(self, precision: str, policy: Policy, micro: int, accumulation: int, cap: int) -> int:
        """Bytes that torch's allocator has to hold beside those that are live at the peak: its rules, replayed."""
        only = self._only(precision, policy, micro)
        largest = self.trace(precision, policy, only=only).largest_workspace(micro)
        key = precision, policy, micro, accumulation, min(cap, largest), only
        if key not in self._fragmentation:
            asked = self.requests(precision, policy, micro, accumulation, cap)
            live = self._recorded(precision, policy, micro, accumulation).peak(micro, self.workload.share, cap)
            least = least_memory(asked.sizes, asked.events, self.workload.expandable)
            if policy.offload:
                least = int(least * (1 + UNORDERED))
            self._fragmentation[key] = max(0, least - live - self.workload.device.cublas)
        return self._fragmentation[key]

    def reserved(self, found: Candidate, cap: int, card: int) -> int:
        """Bytes that the allocator will hold at most on a card of so many bytes; 0 where the replay is of one GPU's
        run and this is none, or of a CPU's.
        """
        load = self.workload
        if load.ranks > 1 or load.zero_stage or not load.cuda:
            return 0
        outside = sum(found.predicted.get(category, 0) for category in (Category.CONTEXT, Category.LOADER))
        asked = self.requests(found.precision, found.policy, found.micro, found.accumulation, cap)
        return replay(asked.sizes, asked.events, card - outside, load.expandable, card).reserved

    def step_of(self, found: Candidate, cap: int) -> Timeline:
        """The step of a candidate of this search, or of one under another ZeRO stage."""
        search = self.under(found.zero_stage)
        return search.timeline(found.precision, found.policy, found.micro, found.accumulation, cap)

    def _sharding(self) -> Sharding:
        load = self.workload
        return shard(self.parameters, load.ranks, load.zero_stage, load.offload_optimizer, load.halved)

    def candidate(self, precision: str, policy: Policy, accumulation: int, cap: int) -> Candidate:
        """What a step in `accumulation` micro-batches needs and costs."""
        load = self.workload
        micro = -(-load.share // accumulation)
        timeline = self.timeline(precision, policy, micro, accumulation, cap, self.within)
        predicted = timeline.by_category()
        outside = (Category.CONTEXT, Category.LOADER, Category.FRAGMENTATION)
        allocated = sum(size for category, size in predicted.items() if category not in outside)
        if load.cuda:
            allocated -= load.nccl
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
