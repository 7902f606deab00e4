"""What `launch/plan.py` does: plans on any machine for a GPU that need not be there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.byte_sizes import GIB, gib, parse_bytes
from engine.config import (
    ConfigError,
    DataConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    RunConfig,
    command_line,
    require,
)
from engine.text_table import text_table
from engine.wording import DASH

TRAINING_FLAGS = {
    "precision": "--precision",
    "recompute": "--recompute",
    "offload": "--memory.offload",
    "micro_batch_size": "--parallel.micro-batch-size",
    "sync_bn": "--sync-bn",
    "optimizer": "--optimizer",
    "ema": "--optim.ema",
    "sam": "--optim.sam",
}
"""What a plan is made for, by the flags of launch/train.py."""
SHARDS = "shards"
HEADS = (
    "precision",
    "images × parts × GPUs",
    SHARDS,
    "recompute",
    "peak",
    "largest terms",
    "cost",
    "BatchNorm sees",
    "",
)


@dataclass(frozen=True)
class PlanConfig:
    """What is to be trained, and on what."""

    arch: str = ""
    """Network name, or with --matrix a list of names between commas; none is resnext50, or with --matrix all."""
    batch_size: int = 128
    """Images a step over all GPUs together."""
    image_size: int = 224
    """Side of the images in pixels."""
    gpu_memory: str = "8GiB"
    """Memory of one GPU, with its unit; auto is what is free on the GPU of this machine."""
    gpus: int = 1
    """GPUs that share the batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute dtype; auto is that of this machine's GPU, or bf16 where there is none."""
    recompute: Literal["auto", "none", "block", "segments", "nested"] = "auto"
    """Only this kind of recompute."""
    offload: Literal["auto", "on", "off"] = "auto"
    """Saved activations in pinned host memory: where nothing else fits, always, or never."""
    micro_batch_size: int = 0
    """Only this micro-batch; 0 is any."""
    sync_bn: bool = False
    """BatchNorm over the images of all GPUs together."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage under DeepSpeed; 0 is DDP."""
    offload_optimizer: bool = False
    """Optimizer states in host memory, under ZeRO-2."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Its states are part of the memory."""
    ema: float = 0.0
    """Decay of a moving average of the weights, launch/train.py's --optim.ema: a copy of them; 0 is none."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation, launch/train.py's --optim.sam: two passes and a copy; 0 is off."""
    num_classes: int = 1000
    """Classes of the data."""
    compile: bool = False
    """Also plan for torch.compile's own graphs, which keep less; takes longer."""
    matrix: bool = False
    """Plan every network for 8, 12, 16, 24 and 80 GiB in fp32, fp16 and bf16 instead."""
    processes: int = 0
    """Processes for --matrix; 0 is one a core."""
    explain: bool = False
    """Also print every term of the chosen plan's peak, the assumptions, and what earlier runs measured."""
    output: Path | None = None
    """Folder of plan.json and memory.png (--matrix: plan-matrix.json and .md); none is runs/plan-ARCH."""

    def run_config(self) -> RunConfig:
        """The same as a run's description. Raises ConfigError."""
        require(self.gpus >= 1, f"--gpus must be at least 1, not {self.gpus}")
        require(self.processes >= 0, f"--processes must be 0 (one a core) or more, not {self.processes}")
        require(
            self.zero_stage == 2 or not self.offload_optimizer, "--offload-optimizer is ZeRO-2's: give --zero-stage 2"
        )
        return RunConfig(
            model=ModelConfig(arch=self.arch or ModelConfig.arch),
            data=DataConfig(image_size=self.image_size),
            optim=OptimConfig(batch_size=self.batch_size, optimizer=self.optimizer, ema=self.ema, sam=self.sam),
            precision=PrecisionConfig(self.precision),
            memory=MemoryConfig(self.recompute, self.gpu_memory, self.offload),
            parallel=ParallelConfig(self.micro_batch_size, self.sync_bn),
        )


def parse(arguments: list[str] | None = None) -> PlanConfig:
    """The plan that is asked for. Raises ConfigError as `command_line`."""
    description = "Which plan trains a network in a GPU's memory, what it costs, and what it changes. Needs no GPU."
    return command_line(PlanConfig, arguments, description)


def run_plan(options: PlanConfig) -> int:
    """Print the candidates and the one that is chosen; write plan.json and a picture. Returns the exit code.

    Raises ConfigError where nothing fits, or something asked for cannot be meant.
    """
    config = options.run_config()
    arch = config.model.arch
    if options.zero_stage or options.offload_optimizer:
        config.optim.refuse_deepspeed(options.zero_stage)
    if options.matrix:
        from engine.plan_matrix import run_matrix

        return run_matrix(options)
    folder = output_folder(options, f"plan-{arch}")
    from engine.calibration import correction_for
    from engine.memory.simulate import Untraceable
    from engine.plan_run import (
        launch_command,
        nothing_fits,
        plain_plan,
        plan_lines,
        planned_as,
        search_of,
        sharded,
        workload_of,
    )

    hardware = planned_hardware()
    budget = budget_of(options.gpu_memory)
    correction = correction_for(hardware.name)
    workload = workload_of(
        config,
        builder(config, options.num_classes),
        options.num_classes,
        ranks=options.gpus,
        zero_stage=options.zero_stage,
        offload_optimizer=options.offload_optimizer,
        correction=correction.factor,
    )
    from engine.planner import choose_precision

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
    print(f"{arch}, batch {options.batch_size}, {options.image_size} px, {options.gpus} × {gib(budget)}")
    if result.chosen is None:  # then under the first stage that has a plan
        asked, result = result, next((one for one in others if one.chosen), result)
        others = [one for one in (asked, *others) if one is not result]
    print(candidate_table(result, others))
    if result.chosen is None:
        raise ConfigError(nothing_fits(result, others))
    from engine.memory.fake import on_meta
    from engine.runfolder import RunFolder

    stage = result.chosen.zero_stage
    plain = plain_plan(config, on_meta(workload.build), hardware, options.gpus, stage)
    planned = planned_as(plain, search, result)
    print("\nchosen")
    for line in plan_lines(planned):
        print(f"  {line}")
    if planned.plan.compile and not options.compile and not result.chosen.plain:
        print("  launch/train.py looks at what torch.compile's graphs keep as well; with --compile so does this")
    if stage:
        command = launch_command(stage, options.gpus, options.offload_optimizer)
        print(f"  start it by: {command} launch/train.py {training_flags(options)}")
    if options.explain:
        print("\n" + explanation(result, correction))
    files = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json("plan.json", planned.plan.as_dict())
    if picture := planned.picture():
        files.write_bytes("memory.png", picture)
    print(f"written to {folder / 'plan.json'} and {folder / 'memory.png'}")
    return 0


def output_folder(options: PlanConfig, name: str) -> Path:
    """Where to write; made once there is something. Raises ConfigError where that is a file, or another run's."""
    folder = options.output or Path("runs") / name
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    require(writable, f"--output {folder}: cannot be made a folder, {existing} is no folder to write in")
    require(
        not (folder / "config.yaml").exists(),
        f"--output {folder} holds a run, with a plan of its own; give another one",
    )
    return folder


def training_flags(options: PlanConfig) -> str:
    """launch/train.py's flags for what is planned."""
    said = ["--arch", options.arch or ModelConfig.arch, "--batch-size", options.batch_size]
    said += ["--image-size", options.image_size, "--gpu-memory", options.gpu_memory]
    for field, flag in TRAINING_FLAGS.items():
        if (value := getattr(options, field)) != getattr(PlanConfig, field):
            said += [flag] if value is True else [flag, value]
    return " ".join(map(str, said))


def builder(config: RunConfig, num_classes: int) -> Callable:
    """Builds the network of `config`. Raises ConfigError where there is none of that name, or not of that size."""
    from engine.memory.fake import on_meta
    from engine.network import network_builder

    build = network_builder(config, num_classes)
    try:
        on_meta(build)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None
    return build


def planned_hardware():
    """This machine's GPU, or any card with bf16 where there is none."""
    from engine.planner import Hardware, use_cuda

    return Hardware.detect() if use_cuda() else Hardware("cuda", "a GPU", (8, 0), native_bf16=True)


def budget_of(text: str) -> int:
    """Bytes of --gpu-memory. Raises ConfigError for what is no size, and for more than this machine's GPU has."""
    from engine.planner import Hardware, use_cuda

    if text == "auto":
        require(use_cuda(), "--gpu-memory auto: there is no GPU here; give its memory, as in --gpu-memory 8GiB")
        from engine.plan_run import free_memory

        return free_memory()
    try:
        budget = parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--gpu-memory {error}") from None
    from engine.plan_run import refuse_more_than_the_card

    refuse_more_than_the_card(budget, Hardware.detect() if use_cuda() else None)
    return budget


def candidate_table(result, others=()) -> str:
    """Every candidate that was simulated, the chosen one marked.

    others  results under other ZeRO stages: what each has chosen, or its smallest need
    """
    cheapest = result.cheapest.seconds
    candidates = [*(result.candidates or [result.least]), *(one.chosen or one.least for one in others)]
    rows = []
    for candidate in sorted(candidates, key=lambda one: (one.tier, one.seconds)):
        terms = sorted(candidate.predicted.items(), key=lambda item: -item[1])[:2]
        load = result.workload
        sees = candidate.micro * (load.ranks if load.sync_bn else 1) if candidate.changes else load.global_batch
        images = f"{sees} image{'s' if sees > 1 else ''}" if result.normalised else DASH
        mark = "chosen" if candidate is result.chosen else "" if candidate.peak <= result.budget else "too large"
        rows.append(
            (
                candidate.precision,
                f"{candidate.micro} × {candidate.accumulation} × {load.ranks}",
                f"ZeRO-{candidate.zero_stage}" if candidate.zero_stage else "DDP" if load.ranks > 1 else "",
                candidate.policy.describe(),
                gib(candidate.peak),
                ", ".join(f"{category.label} {size / GIB:.1f}" for category, size in terms),
                f"{candidate.seconds / cheapest:.2f}",
                images,
                mark,
            )
        )
    if load.ranks == 1:
        return text_table(tuple(head for head in HEADS if head != SHARDS), [row[:2] + row[3:] for row in rows], left=3)
    return text_table(HEADS, rows, left=4)


def explanation(result, correction) -> str:
    """The chosen plan's peak term by term, what is assumed, and what earlier runs on this GPU measured."""
    from engine.memory.cuda import DECODED_SIDE

    load, chosen = result.workload, result.chosen
    rows = [(category.label, gib(size)) for category, size in sorted(chosen.predicted.items(), key=lambda it: -it[1])]
    device = load.device
    return "\n".join(
        [
            text_table(("at the peak", ""), [*rows, ("all", gib(chosen.peak))]),
            f"assumed: context {gib(device.context)}, cuBLAS workspace {gib(device.cublas)}, a convolution's at "
            f"most {gib(result.cap)} (CUDNN_CONV_WSCAP_DBG), {device.fragmentation:.0%} of the allocator's peak lost",
            *([f"assumed: NCCL {gib(load.nccl)}, ZeRO's buckets as in configs/deepspeed"] if load.ranks > 1 else []),
            f"assumed: the loader decodes photographs of {DECODED_SIDE} px a side",
            correction.describe(),
        ]
    )
