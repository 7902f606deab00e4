"""A plan as a value, for Python: what `launch/plan.py` prints."""

from __future__ import annotations

from engine.config import RunConfig
from engine.plan.budget import budget_of
from engine.plan.memory.fake import on_meta
from engine.plan.request import builder, planned_hardware
from engine.plan.run_plan import plan_run
from engine.plan.workload import Planned


def plan_for(config: RunConfig, *, num_classes: int = 1000, gpus: int = 1, zero_stage: int = 0) -> Planned:
    """How `config` runs in its `memory.gpu_memory` on each of `gpus` GPUs; nothing is allocated and none is needed.

    Raises ConfigError where nothing fits, with the smallest memory that would do.
    """
    build = builder(config, num_classes)
    budget = budget_of(config.memory.gpu_memory)
    return plan_run(config, on_meta(build), build, num_classes, planned_hardware(), budget, gpus, zero_stage)
