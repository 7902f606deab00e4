"""What `launch/plan.py` does: plans on any machine for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Callable

from engine.config import ConfigError
from engine.config.byte_sizes import gib
from engine.config.pixels.image_size import px
from engine.plan.budget import budget_of
from engine.plan.calibration import correction_for
from engine.plan.candidate_table import candidate_table, explanation
from engine.plan.matrix import run_matrix
from engine.plan.memory.card import device_of
from engine.plan.memory.fake import on_meta
from engine.plan.memory.simulate import Untraceable
from engine.plan.request import PlanConfig, builder, output_folder, planned_hardware, training_flags
from engine.plan.run_plan import plain_plan, planned_as, search_of, sharded, workload_of
from engine.plan.told import launch_command, nothing_fits, plan_lines
from engine.plan.workload import Planned
from engine.runs.output import as_file_name
from engine.runs.runfolder import RunFolder
from engine.step.device_memory.allocator_settings import expandable
from engine.step.plan import choose_precision


def run_plan(options: PlanConfig, draw: Callable[[Planned], bytes | None]) -> int:
    """Print the candidates and the one that is chosen; write plan.json and a picture. Returns the exit code.

    draw  makes the picture of a plan's memory (engine.report.memory_picture)

    Raises ConfigError where nothing fits, or something asked for cannot be meant.
    """
    config = options.run_config()
    arch = config.model.arch
    if options.zero_stage or options.offload_optimizer:
        config.optim.refuse_deepspeed(options.zero_stage)
    if options.matrix:
        return run_matrix(options)
    folder = output_folder(options, f"plan-{as_file_name(arch)}")
    hardware = planned_hardware()
    budget = budget_of(options.gpu_memory)
    correction = correction_for(hardware.name)
    workload = workload_of(
        config,
        builder(config, options.num_classes),
        options.num_classes,
        ranks=int(options.gpus),
        zero_stage=options.zero_stage,
        offload_optimizer=options.offload_optimizer,
        correction=correction,
        expandable=expandable(),
        device=device_of(hardware.name, hardware.capability),
    )
    precision = choose_precision(config.precision.precision, hardware)
    try:
        search = search_of(config, workload, precision, options.compile)
        result = search.run(budget, every=True)
        others = sharded(config, search, budget)
    except Untraceable as error:
        raise ConfigError(
            f"{error}. No plan can be made ahead; launch/train.py measures instead: it starts with the whole batch and "
            "splits a step that runs out of memory"
        ) from None
    print(f"{arch}, batch {options.batch_size}, {px(options.image_size)}, {options.gpus} × {gib(budget)}")
    if result.chosen is None:  # then under the first stage that has a plan
        asked, result = result, next((one for one in others if one.chosen), result)
        others = [one for one in (asked, *others) if one is not result]
    print(candidate_table(result, others))
    if result.chosen is None:
        raise ConfigError(nothing_fits(result, others))
    stage = result.chosen.zero_stage
    plain = plain_plan(config, on_meta(workload.build), hardware, int(options.gpus), stage)
    planned = planned_as(plain, search, result, hardware.memory_bytes)
    print("\nchosen")
    for line in plan_lines(planned):
        print(f"  {line}")
    if planned.plan.compile and not options.compile and not result.chosen.plain:
        print("  launch/train.py looks at what torch.compile's graphs keep as well; with --compile so does this")
    if stage:
        command = launch_command(stage, int(options.gpus), options.offload_optimizer)
        print(f"  start it by: {command} launch/train.py {training_flags(options)}")
    if options.explain:
        print("\n" + explanation(result, correction))
        if units := getattr(on_meta(workload.build), "unit_names", ()):
            print(f"units of recompute that were found: {', '.join(units)}")
    files = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json("plan.json", planned.plan.as_dict())
    if picture := draw(planned):
        files.write_bytes("memory.png", picture)
    print(f"written to {folder / 'plan.json'} and {folder / 'memory.png'}")
    return 0
