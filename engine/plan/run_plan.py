"""The plan of a run: searched for where there is a memory to plan for, as asked for where there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from engine.config import ConfigError, RunConfig, require
from engine.plan.calibration import Correction
from engine.plan.memory.card import device_of
from engine.plan.memory.loader import Feed
from engine.plan.memory.simulate import Untraceable
from engine.plan.memory.trace import Category
from engine.plan.search import Search
from engine.plan.told import nothing_fits
from engine.plan.workload import Candidate, Planned, Result, Workload
from engine.step.device_memory.allocator_settings import expandable
from engine.step.plan import Hardware, Plan, choose_precision, function_changes, make_plan, split_batch
from engine.step.ranks.shares import largest_share
from engine.step.recorded.choice import recordable

if TYPE_CHECKING:
    pass  # accelerate takes seconds to import

logger = logging.getLogger("hcr")


def workload_of(config: RunConfig, build: Callable[[], nn.Module], num_classes: int, **more) -> Workload:
    """What `config` trains, for the search; `build` makes its network."""
    return Workload(
        name=config.model.arch,
        build=build,
        image_size=config.data.side,
        channels=config.data.channels,
        num_classes=num_classes,
        global_batch=config.optim.batch_size,
        optim=config.optim,
        sync_bn=config.parallel.sync_bn,
        halved=config.parallel.gradient_compression == "bf16",
        channels_last=config.model.channels_last,
        **({"feed": Feed(prefetch=config.data.prefetch)} | more),
    )


def search_of(config: RunConfig, workload: Workload, precision: str, compiled: bool = False) -> Search:
    """A search that keeps to what `config` asks for; `compiled` looks at torch.compile's graphs too."""
    asked, offload = config.memory.recompute, config.memory.offload
    split_batch(workload.global_batch, workload.ranks, config.parallel.micro_batch_size)
    return Search(
        workload,
        [precision],
        None if asked == "auto" else (asked,),
        config.parallel.micro_batch_size,
        offload=offload != "off",
        only_offload=offload == "on",
        compiled=compiled and asked == "auto" and offload != "on",
    )


def plan_run(
    config: RunConfig,
    model: nn.Module,
    build: Callable[[], nn.Module],
    num_classes: int,
    hardware: Hardware,
    budget: int,
    ranks: int = 1,
    zero_stage: int = 0,
    correction: Correction | None = None,
    offload_optimizer: bool = False,
    feed: Feed | None = None,
    teacher: Callable[[], nn.Module] | None = None,
) -> Planned:
    """How `config` runs in `budget` bytes of device memory on each of `ranks` devices; 0 searches nothing.

    model  the network itself; `build` makes another one
    feed   where its images come from; None is photographs through DALI
    teacher  builds the network whose logits it learns

    Raises ConfigError where nothing fits, with the smallest budget that would do. A network that cannot be simulated is
    planned as it was asked for: the first real step then measures it.
    """
    if not budget:
        require(config.memory.offload != "on", "--memory.offload on: give a --gpu-memory to plan for")
        plan = make_plan(config, model, hardware, ranks, zero_stage)
        return Planned(plan, halvings(plan))
    plain = plain_plan(config, model, hardware, ranks, zero_stage)
    workload = workload_of(
        config,
        build,
        num_classes,
        ranks=ranks,
        zero_stage=zero_stage,
        cuda=hardware.type == "cuda",
        correction=correction,
        offload_optimizer=offload_optimizer,
        expandable=expandable(),
        recorded=plain.cuda_graph,
        device=device_of(hardware.name, hardware.capability),
        teacher=teacher,
        **({} if feed is None else {"feed": feed}),
    )
    try:
        precision = choose_precision(config.precision.precision, hardware)
        search = search_of(config, workload, precision, plain.compile)
        result = search.run(budget)
    except Untraceable as error:
        logger.info("%s. The first steps measure it instead: a step that runs out of memory is split", error)
        return Planned(plain, halvings(plain))
    if result.chosen is None:
        raise ConfigError(nothing_fits(result, sharded(config, search, budget)))
    return planned_as(plain, search, result, hardware.memory_bytes)


def plain_plan(config: RunConfig, model: nn.Module, hardware: Hardware, ranks: int, zero_stage: int) -> Plan:
    """What `config` asks for but recompute, which the search decides on."""
    return make_plan(
        replace(config, memory=replace(config.memory, recompute="none")), model, hardware, ranks, zero_stage
    )


def planned_as(plain: Plan, search: Search, result: Result, card: int = 0) -> Planned:
    """What `result`, which has a plan, comes to; `plain` has what no candidate changes, `card` is its memory."""
    assert result.chosen is not None
    timeline = search.step_of(result.chosen, result.cap)
    reserved = search.reserved(result.chosen, result.cap, max(result.budget, card))
    plan = replace(to_plan(plain, result, result.chosen), predicted_reserved_bytes=reserved)
    return Planned(plan, ladder(plain, search, result), result, timeline)


def sharded(config: RunConfig, search: Search, budget: int) -> list[Result]:
    """The same plan under ZeRO 1, 2 and 3, as far as DeepSpeed can do what `config` asks for; none on one GPU."""
    if search.workload.ranks == 1 or search.workload.zero_stage:
        return []
    return [search.under(stage).run(budget) for stage in (1, 2, 3) if _deepspeed_can(config, stage)]


def _deepspeed_can(config: RunConfig, zero_stage: int) -> bool:
    try:
        config.optim.refuse_deepspeed(zero_stage)
    except ConfigError:
        return False
    return True


def to_plan(plain: Plan, result: Result, candidate: Candidate) -> Plan:
    """A candidate as a Plan; `plain` has what no candidate changes."""
    predicted = candidate.predicted
    return replace(
        plain,
        precision=candidate.precision,
        loss_scaling=candidate.precision == "fp16",
        micro_batch_size=candidate.micro,
        accumulation=candidate.accumulation,
        recompute=candidate.policy.describe(),
        policy=candidate.policy,
        cuda_graph=plain.cuda_graph and recordable(candidate.policy),
        offload_optimizer=result.workload.offload_optimizer,
        parameter_bytes=predicted.get(Category.PARAMETERS, 0),
        gradient_bytes=plain.gradient_bytes,
        optimizer_bytes=predicted.get(Category.OPTIMIZER, 0),
        changes=candidate.changes,
        budget_bytes=result.budget,
        workspace_cap_bytes=result.cap if result.workload.cuda else 0,
        predicted_bytes={category.label: size for category, size in predicted.items()},
        predicted_peak_bytes=candidate.peak,
        predicted_allocated_bytes=candidate.allocated,
        correction=result.workload.factors(candidate.precision, candidate.policy).describe(),
        relative_cost=round(candidate.seconds / result.cheapest.seconds, 3),
    )


def ladder(plain: Plan, search: Search, result: Result) -> tuple[Plan, ...]:
    """Plans after the chosen one, each needing at least 5 % less than the one before, then its halvings.

    A search that stops at the first plan has not looked at recompute, which comes before micro-batches.
    """
    assert result.chosen is not None
    steps, last, known = [], result.chosen, list(result.candidates)
    if not any(candidate.policy.segments and candidate.policy.kind != "first" for candidate in known):
        known += search.under(result.chosen.zero_stage).recomputing(result.chosen, result.cap)
    for candidate in sorted(known, key=lambda one: one.order):
        if candidate.peak < 0.95 * last.peak and candidate.policy.offload == last.policy.offload:
            steps.append(to_plan(plain, result, candidate))
            last = candidate
    end = steps[-1] if steps else to_plan(plain, result, result.chosen)
    return (*steps, *halvings(end))


def halvings(plan: Plan) -> tuple[Plan, ...]:
    """The same plan in twice as many micro-batches, again and again, down to one image."""
    share, steps = largest_share(plan.global_batch_size, plan.ranks), []
    while plan.micro_batch_size > (2 if plan.normalised else 1):
        count = min(share, 2 * plan.accumulation)
        micro = -(-share // count)
        normalised = plan.normalised
        changes = function_changes(normalised, plan.global_batch_size, micro, count, plan.ranks, plan.sync_bn)
        # What was predicted was for the whole plan: the halved one's need is not known.
        plan = replace(
            plan,
            micro_batch_size=micro,
            accumulation=count,
            changes=changes,
            predicted_bytes={},
            predicted_peak_bytes=0,
            predicted_allocated_bytes=0,
        )
        steps.append(plan)
    return tuple(steps)
