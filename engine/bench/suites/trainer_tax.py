"""Suite `trainer`: what the trainer costs over a bare PyTorch loop, everything else the same, taking turns."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

import archs
from engine.bench.instrument.bare_loop import CLASSES, ReadyBatches, bare_loop
from engine.bench.instrument.measure import Comparison, interleave, wait
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import need
from engine.bench.instrument.rows import Row
from engine.config import DataConfig, LogConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from engine.step.plan import Hardware, Precision, choose_compile, choose_precision, make_plan

if TYPE_CHECKING:
    from engine.train.trainer import Trainer

Switch = Literal["on", "off"]


def rows(options: Options) -> Iterator[Row]:
    """ResNeXt-50 in the precision that a run here would choose, in fp32, and compiled where a run would be."""
    hardware = Hardware.detect()
    cuda, tiny = hardware.type == "cuda", options.dry_run
    batch = options.batch_size or (2 if tiny else 128 if cuda else 32)
    size = options.image_size or (32 if tiny else 224 if cuda else 64)
    chosen = choose_precision("auto", hardware)
    kinds: list[tuple[Any, Switch]] = [(chosen, "on")] if choose_compile("auto", hardware) else []
    kinds += [(precision, "off") for precision in dict.fromkeys([chosen, "fp32"])]
    for arch in options.archs or ("resnet18" if tiny else "resnext50",):
        for precision, compiled in kinds:
            settings = {
                "arch": archs.lookup(arch).name,
                "batch_size": batch,
                "image_size": size,
                "precision": precision,
                "compile": compiled,
                "steps": 2 if tiny else 40 if cuda else 8,
                "rounds": options.rounds or (2 if tiny else 9),
                "threads": None if cuda else torch.get_num_threads(),
            }
            key = f"{settings['arch']} {precision}" + (" compile" if compiled == "on" else "")
            yield Row(key, settings, partial(measure, settings), seconds=60.0)


def measure(settings: dict[str, Any], deadline: float) -> dict[str, Any]:
    """The comparison of one row. Raises NotAvailable without accelerate, which the trainer stands on."""
    need("accelerate")
    given = {
        key: settings[key] for key in ("arch", "batch_size", "image_size", "precision", "steps", "rounds", "compile")
    }
    return trainer_tax(**given, deadline=deadline).as_dict()


def trainer_tax(
    arch: str,
    batch_size: int,
    image_size: int,
    precision: Precision,
    steps: int,
    rounds: int,
    compile: Switch = "off",
    deadline: float = math.inf,
) -> Comparison:
    """Images/s of the trainer and of the bare loop over `steps` steps a round."""
    with ready_trainer(arch, batch_size, image_size, precision, steps, compile) as (trainer, batches, bare):
        theirs = bare_loop(bare, batches, trainer.config.optim)
        return interleave({"trainer": epoch_rate(trainer), "bare loop": theirs}, rounds, deadline=deadline)


@contextmanager
def ready_trainer(
    arch: str, batch_size: int, image_size: int, precision: Precision, steps: int, compile: Switch = "off"
) -> Iterator[tuple[Trainer, ReadyBatches, torch.nn.Module]]:
    """(a trainer set up as a run sets it up, the batches in memory that it trains on, a bare twin of its network)."""
    from accelerate.state import AcceleratorState, GradientState

    from engine.recovery.interrupt import Interrupt
    from engine.runs.runfolder import RunFolder
    from engine.step.optim import build_optimizer
    from engine.step.wrap import AUTOCAST_DTYPES, Launch, build_accelerator, wrap
    from engine.train.trainer import Trainer

    config = RunConfig(
        model=ModelConfig(arch=arch, compile=compile),
        data=DataConfig(image_size=image_size),
        optim=OptimConfig(epochs=10**6, batch_size=batch_size, optimizer="sgd"),
        precision=PrecisionConfig(precision),
        log=LogConfig(),
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of an earlier call would stay
    GradientState._reset_state()
    torch.manual_seed(0)
    model = archs.build(arch, CLASSES, image_size=image_size)
    bare = copy.deepcopy(model)
    plan = make_plan(config, model, Hardware.detect())
    accelerator = build_accelerator(plan, Launch(0, 0, 1, None), config.optim)
    device = accelerator.device
    batches = ReadyBatches(steps, batch_size, image_size, AUTOCAST_DTYPES[plan.precision], device)
    wrapped, optimizer = wrap(model.to(device), build_optimizer(model.to(device), config.optim), plan, accelerator)
    bare = bare.to(device).to(memory_format=torch.channels_last).train()
    if plan.compile:
        bare.compile(dynamic=False)
    with tempfile.TemporaryDirectory() as scratch:
        classes, folder = list(map(str, range(CLASSES))), RunFolder(Path(scratch))
        loaders = batches, batches
        yield (
            Trainer(config, plan, accelerator, wrapped, optimizer, *loaders, classes, folder, Interrupt()),
            batches,
            bare,
        )


def epoch_rate(trainer: Trainer) -> Callable[[], float]:
    """A function that trains one epoch, as a run does, and returns its images/s."""
    device = trainer.accelerator.device

    def run() -> float:
        wait(device)
        began = time.perf_counter()
        trainer._train_epoch()
        wait(device)
        trainer.progress.step_in_epoch = 0
        trainer.progress.epoch += 1
        return len(trainer.train_loader) / (time.perf_counter() - began)

    return run
