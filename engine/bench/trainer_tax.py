"""What the trainer costs over a bare PyTorch loop: same batches, model, precision and optimizer, taking turns."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from accelerate.state import AcceleratorState, GradientState

import archs
from engine.bench.bare_loop import CLASSES, ReadyBatches, bare_loop, wait
from engine.bench.interleave import Comparison, interleave
from engine.config import DataConfig, LogConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from engine.interrupt import Interrupt
from engine.optim import build_optimizer
from engine.planner import Hardware, Precision, make_plan
from engine.runfolder import RunFolder
from engine.trainer import Trainer
from engine.wrap import AUTOCAST_DTYPES, Launch, build_accelerator, wrap


def trainer_tax(
    arch: str,
    batch_size: int,
    image_size: int,
    precision: Precision,
    steps: int,
    rounds: int,
    compile: Literal["on", "off"] = "off",
) -> Comparison:
    """Images/s of the trainer and of the bare loop over `steps` steps a round."""
    config = RunConfig(
        model=ModelConfig(arch=arch, compile=compile),
        data=DataConfig(image_size=image_size),
        optim=OptimConfig(epochs=10**6, batch_size=batch_size, optimizer="sgd"),
        precision=PrecisionConfig(precision),
        log=LogConfig(),
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of an earlier call would stay
    GradientState._reset_state()
    hardware, launch = Hardware.detect(), Launch(0, 0, 1, None)
    torch.manual_seed(0)
    model = archs.build(arch, num_classes=CLASSES)
    bare = copy.deepcopy(model)
    plan = make_plan(config, model, hardware)
    accelerator = build_accelerator(plan, launch, config.optim)
    device = accelerator.device
    batches = ReadyBatches(steps, batch_size, image_size, AUTOCAST_DTYPES[plan.precision], device)
    wrapped, optimizer = wrap(model.to(device), build_optimizer(model.to(device), config.optim), plan, accelerator)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        trainer = Trainer(
            config,
            plan,
            accelerator,
            wrapped,
            optimizer,
            batches,
            batches,
            list(map(str, range(CLASSES))),
            folder,
            Interrupt(),
        )

        def ours() -> float:
            wait(device)
            began = time.perf_counter()
            trainer._train_epoch()
            wait(device)
            trainer.progress.step_in_epoch = 0
            trainer.progress.epoch += 1
            return steps * batch_size / (time.perf_counter() - began)

        bare = bare.to(device).to(memory_format=torch.channels_last).train()
        if plan.compile:
            bare.compile(dynamic=False)
        theirs = bare_loop(bare, batches, config.optim)
        return interleave({"trainer": ours, "bare loop": theirs}, rounds)
