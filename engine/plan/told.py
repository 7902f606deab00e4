"""What a plan, or that there is none, is in words."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config.byte_sizes import GIB, enough, gib
from engine.plan.workload import Candidate, Planned, Result


def launch_command(stage: int, ranks: int, offload_optimizer: bool = False) -> str:
    """How a run under DeepSpeed is started."""
    file = f"configs/accelerate/deepspeed_zero{stage}{'_offload' * offload_optimizer}.yaml"
    return f"accelerate launch --config_file {file} --num_processes {ranks}"


def nothing_fits(result: Result, others: Sequence[Result] = ()) -> str:
    """What to say where no candidate fits: the smallest budget that would do, and its largest term.

    others  the same under ZeRO stages: the first that has a plan is named, or the one that needs the least
    """
    least = result.least
    assert least is not None
    text = (
        f"{result.workload.name} at batch {result.workload.global_batch} has no plan in {gib(result.budget)}: it needs "
        f"{gib(least.peak)} ({least.precision}, {least.micro} image{'s' if least.micro > 1 else ''} at a time, "
        f"recompute {least.policy.describe()}), most of it {result.dominating()}; "
        f"--gpu-memory {_enough(least)} would do"
    )
    for one in (other.chosen for other in others if other.chosen):
        return f"{text}, or ZeRO-{one.zero_stage}: {launch_command(one.zero_stage, result.workload.ranks)}"
    smallest = min((one.least for one in others if one.least), key=lambda one: one.peak, default=least)
    return text if smallest.peak >= least.peak else f"{text}, or {_enough(smallest)} under ZeRO-{smallest.zero_stage}"


def _enough(candidate: Candidate) -> str:
    """The budget that it needs, as a flag's value."""
    return f"{enough(candidate.peak) / GIB:.10g}GiB"


def plan_lines(planned: Planned) -> list[str]:
    """What a run says of its plan before it starts: at most five lines, and one of what is frozen."""
    plan, result = planned.plan, planned.result
    lines = [plan.describe(), *([plan.frozen] if plan.frozen else [])]
    if result is None:
        return lines + [f"note: {change}" for change in plan.changes]
    lines.append(plan.memory_line())
    lines.append("function: " + ("; ".join(plan.changes) or "the same as on one GPU that takes the whole batch"))
    cheapest = result.cheapest
    lines.append(
        f"cost: {plan.relative_cost:.2f} × the cheapest of {len(result.candidates)} simulated"
        + (", but for raw outputs, which were not timed" if result.cheapest_is_not_timed else "")
        + ("" if cheapest is result.chosen else f" ({cheapest.policy.describe()}, which needs {gib(cheapest.peak)})")
    )
    if planned.ladder:
        after = planned.ladder[0]
        lines.append(
            f"if memory runs out: {after.micro_batch_size} × {after.accumulation}, recompute {after.recompute}"
        )
    return lines
