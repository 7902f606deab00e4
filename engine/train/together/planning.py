"""The plan of a session: for the memory that is there, or that --gpu-memory names, and the same one on all ranks."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from engine.config import RunConfig, flatten
from engine.data.preprocessing import Preprocessing
from engine.data.sources.source import Source
from engine.plan.budget import budget_bytes, free_memory, least_over_ranks, refuse_more_than_the_card
from engine.plan.calibration import Correction, correction_for
from engine.plan.memory.loader import feed_of
from engine.plan.run_plan import plan_run
from engine.plan.workload import Planned
from engine.step.device_memory.batch import refuse_batch
from engine.step.distill.teacher import Teacher
from engine.step.network import network_builder
from engine.step.plan import Hardware
from engine.step.ranks.meeting import Meeting
from engine.step.ranks.shares import largest_share
from engine.step.wrap import Launch


def refuse_larger_than_memory(config: RunConfig, source: Source, hardware: Hardware, ranks: int) -> None:
    """Raise ConfigError where a rank's images alone are more than a CPU's memory; of a GPU's, the plan knows more."""
    if hardware.type == "cpu":
        share = largest_share(min(config.optim.batch_size, len(source.train)), ranks)
        refuse_batch(share, config.data.side, config.data.channels, hardware=hardware)


def plan_session(
    config: RunConfig,
    model: nn.Module,
    source: Source,
    hardware: Hardware,
    launch: Launch,
    meeting: Meeting | None,
    replacing: bool = False,
    teacher: Teacher | None = None,
) -> Planned:
    """How `config` runs here, beside its `teacher`; nothing is searched on a bare CPU.

    replacing  this process took the place of one that held memory of the device (engine.recovery.relaunch)

    Raises ConfigError where nothing fits, and on all ranks where one would plan something else.
    """
    budget, classes = budget_bytes(config), len(source.classes)
    refuse_more_than_the_card(budget, hardware)
    if config.memory.gpu_memory == "auto" and hardware.type == "cuda":
        budget = least_over_ranks(free_memory(settle=replacing), launch)
    planned = plan_run(
        config,
        model,
        network_builder(config, classes),
        classes,
        hardware,
        budget,
        launch.ranks,
        launch.zero_stage,
        _correction(hardware.name, meeting) if budget else None,
        launch.offload_optimizer,
        feed_of(source, config.data),
        None if teacher is None else teacher.builder(classes, Preprocessing.named_by(config.data)),
    )
    planned = replace(planned, plan=replace(planned.plan, fsdp=launch.fsdp and launch.ranks > 1))
    if meeting is not None:  # machines may differ in their GPUs
        alike = replace(planned.plan, device_name="")
        meeting.call({name: str(value) for name, value in flatten(alike.as_dict())}, name="plan")
    return planned


def _correction(gpu: str, meeting: Meeting | None) -> Correction:
    """What earlier runs measured on such GPUs, by the first rank's cache: all have to make the same plan."""
    own = correction_for(gpu)
    return own if meeting is None else Correction.from_text(meeting.of_first("correction", own.to_text()))
