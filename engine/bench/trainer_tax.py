"""What the trainer costs over a bare PyTorch loop: same batches, model, precision and optimizer, taking turns.

The bare loop is what a person would write without any of the trainer's services: no metrics, no log, no stop signal,
no weights for the tail, autocast by hand.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState

import archs
from engine.bench.interleave import Comparison, interleave
from engine.config import DataConfig, LogConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from engine.data.loader import Batch
from engine.interrupt import Interrupt
from engine.optim import build_optimizer
from engine.planner import Hardware, Precision, make_plan
from engine.runfolder import RunFolder
from engine.trainer import Trainer
from engine.wrap import AUTOCAST_DTYPES, Launch, build_accelerator, wrap

CLASSES = 10


class ReadyBatches:
    """The same batches in memory, again and again: what is timed is the loop."""

    backend = "memory"

    def __init__(self, steps: int, batch_size: int, image_size: int, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        shape = (batch_size, 3, image_size, image_size)
        self.batches = [
            Batch(
                images=torch.randn(shape).to(device, dtype, memory_format=torch.channels_last),
                labels=torch.randint(CLASSES, (batch_size,), device=device),
                weights=torch.ones(batch_size, device=device),
                global_count=batch_size,
                count=batch_size,
            )
            for _ in range(min(steps, 4))
        ]
        self.steps_per_epoch = steps
        self.bad_images: list = []
        self._images = steps * batch_size

    def __len__(self) -> int:
        return self._images

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, self.steps_per_epoch):
            yield self.batches[step % len(self.batches)]


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        plain = build_optimizer(bare, config.optim)
        low = plan.precision != "fp32"

        def theirs() -> float:
            wait(device)
            began = time.perf_counter()
            for batch in batches.epoch(0):
                with torch.autocast(device.type, AUTOCAST_DTYPES[plan.precision], enabled=low):
                    loss = F.cross_entropy(bare(batch.images), batch.labels)
                loss.backward()
                plain.step()
                plain.zero_grad()
            wait(device)
            return steps * batch_size / (time.perf_counter() - began)

        return interleave({"trainer": ours, "bare loop": theirs}, rounds)
