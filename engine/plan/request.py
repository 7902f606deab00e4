"""What `launch/plan.py` is asked for, as a run's description, and where that is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from engine.config.optimizers import OPTIMIZERS
from engine.config.pixels.image_size import ImageSize, sides
from engine.runs.output import refuse_folder

TRAINING_FLAGS = {
    "channels": "--data.channels",
    "precision": "--precision",
    "recompute": "--recompute",
    "offload": "--memory.offload",
    "micro_batch_size": "--parallel.micro-batch-size",
    "sync_bn": "--sync-bn",
    "optimizer": "--optimizer",
    "ema": "--optim.ema",
    "sam": "--optim.sam",
    "finetune": "--finetune",
}
"""What a plan is made for, by the flags of launch/train.py."""


@dataclass(frozen=True)
class PlanConfig:
    """What is to be trained, and on what."""

    arch: str = ""
    """Network name, or with --matrix a list of names between commas; none is resnext50, or with --matrix all."""
    batch_size: int = 128
    """Images a step over all GPUs together."""
    image_size: ImageSize = 224
    """Side of the images in pixels, or HEIGHT WIDTH."""
    channels: Literal[1, 3] = 3
    """Colours of the images: 1 is grey."""
    gpu_memory: str = "8GiB"
    """Memory of one GPU, with its unit; auto is what is free on the GPU of this machine."""
    gpus: int | str = 1
    """GPUs that share the batch; with --interconnect a range, as 8..1024, or numbers between commas."""
    interconnect: Literal["", "nvlink", "ib400", "eth100"] = ""
    """Project steps of --batch-size images a GPU on so many GPUs joined by this; no plan is made."""
    step_ms: float = 0.0
    """With --interconnect: measured milliseconds of such a step on one GPU; 0 is modelled."""
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
    optimizer: Literal[*OPTIMIZERS] = "adam"
    """Its states are part of the memory."""
    ema: float = 0.0
    """Decay of a moving average of the weights, launch/train.py's --optim.ema: a copy of them; 0 is none."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation, launch/train.py's --optim.sam: two passes and a copy; 0 is off."""
    finetune: str = "all"
    """What is trained, launch/train.py's --finetune: all, head, or the last so many blocks and the head."""
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
        one = isinstance(self.gpus, int) and self.gpus >= 1
        several = "; several numbers are projected with --interconnect" if isinstance(self.gpus, str) else ""
        require(one or bool(self.interconnect), f"--gpus must be a number from 1 on, not {self.gpus}{several}")
        require(not self.step_ms or bool(self.interconnect), "--step-ms is for a projection: give --interconnect")
        require(self.processes >= 0, f"--processes must be 0 (one a core) or more, not {self.processes}")
        require(
            self.zero_stage == 2 or not self.offload_optimizer, "--offload-optimizer is ZeRO-2's: give --zero-stage 2"
        )
        return RunConfig(
            model=ModelConfig(arch=self.arch or ModelConfig.arch, finetune=self.finetune),
            data=DataConfig(image_size=self.image_size, channels=self.channels),
            optim=OptimConfig(batch_size=self.batch_size, optimizer=self.optimizer, ema=self.ema, sam=self.sam),
            precision=PrecisionConfig(self.precision),
            memory=MemoryConfig(self.recompute, self.gpu_memory, self.offload),
            parallel=ParallelConfig(self.micro_batch_size, self.sync_bn),
        )


def parse(arguments: list[str] | None = None) -> PlanConfig:
    """The plan that is asked for. Raises ConfigError as `command_line`."""
    description = "Which plan trains a network in a GPU's memory, what it costs, and what it changes. Needs no GPU."
    return command_line(PlanConfig, arguments, description)


def output_folder(options: PlanConfig, name: str) -> Path:
    """Where to write; made once there is something. Raises ConfigError where that is a file, or another run's."""
    folder = options.output or Path("runs") / name
    refuse_folder(folder)
    require(
        not (folder / "config.yaml").exists(),
        f"--output {folder} holds a run, with a plan of its own; give another one",
    )
    return folder


def training_flags(options: PlanConfig) -> str:
    """launch/train.py's flags for what is planned."""
    said = ["--arch", options.arch or ModelConfig.arch, "--batch-size", options.batch_size]
    said += ["--image-size", *dict.fromkeys(sides(options.image_size)), "--gpu-memory", options.gpu_memory]
    for field, flag in TRAINING_FLAGS.items():
        if (value := getattr(options, field)) != getattr(PlanConfig, field):
            said += [flag] if value is True else [flag, value]
    return " ".join(map(str, said))


def builder(config: RunConfig, num_classes: int) -> Callable:
    """Builds the network of `config`. Raises ConfigError where there is none of that name, or not of that size."""
    from engine.plan.memory.fake import on_meta
    from engine.step.network import network_builder

    build = network_builder(config, num_classes)
    try:
        on_meta(build)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None
    return build


def planned_hardware():
    """This machine's GPU, or any card with bf16 where there is none."""
    from engine.step.plan import Hardware, use_cuda

    return Hardware.detect() if use_cuda() else Hardware("cuda", "a GPU", (8, 0), native_bf16=True)
