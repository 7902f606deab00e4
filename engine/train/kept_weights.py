"""The weights that a run keeps: still of its best epoch when it goes on, and measured on its test split at the end.

They are read from model.safetensors into a network of their own, whatever the run wrapped around the trained one. The
test split chooses nothing: it is not looked at before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from engine.config import ConfigError, RunConfig
from engine.runs.history import standing_test
from engine.runs.records import read_records
from engine.runs.runfolder import RunFolder
from engine.step.network import network_builder
from engine.step.wrap import AUTOCAST_DTYPES, share_buffers
from engine.train.evaluate import evaluate, refuse_lost, refuse_none
from engine.train.shared_folder import decided
from engine.train.together.weights_file import epoch_of
from engine.train.trainer import Trainer

logger = logging.getLogger("hcr")


def go_on(trainer: Trainer, checkpoint: Path) -> None:
    """Resume; where model.safetensors is not what the checkpoint knows as the best, none is. All ranks call this.

    It may be gone, or of an epoch that came after the checkpoint and is now done anew, perhaps to another end: a later
    epoch that is worse than the best so far would leave it there as if it were this run's.

    Raises ConfigError as `Trainer.resume`.
    """
    trainer.resume(checkpoint)
    progress, weights = trainer.progress, trainer.folder.weights
    if not (trainer.config.log.save_best and progress.best_epoch):
        return
    held = decided(trainer.accelerator, lambda: epoch_of(weights))
    if held in ("", str(progress.best_epoch)):
        return
    if trainer.over:
        if held is None:
            raise ConfigError(
                f"--resume {trainer.folder.path}: the run has ended, and its {weights.name} is gone or damaged; the "
                f"weights of its end are in {checkpoint}, which --checkpoint reads"
            )
        return
    logger.info(
        "note: %s, which were the best: the best of the epochs to come are kept",
        f"{weights} is gone or damaged, and with it the weights of epoch {progress.best_epoch}"
        if held is None
        else f"{weights} is of epoch {held}, which comes after {checkpoint.name}, and no longer of epoch "
        f"{progress.best_epoch}",
    )
    progress.forget_best()


def already_measured(folder: RunFolder, step: int) -> bool:
    """Whether metrics.jsonl has the test row of the weights as they are after `step`."""
    found = standing_test(read_records(folder.metrics))
    return found is not None and found.get("step") == step


def kept_network(config: RunConfig, classes: int, folder: RunFolder, accelerator: Accelerator) -> torch.nn.Module:
    """The network with the weights of model.safetensors, in evaluation mode on the device; the first rank reads."""
    model = network_builder(config, classes)().to(accelerator.device).to(memory_format=torch.channels_last)
    if accelerator.is_main_process:
        model.load_state_dict(load_file(folder.weights))
    share_buffers(tensor.detach() for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def measure_test(trainer: Trainer, loader: Any) -> None:
    """Write the row of kind `test`, and say it, unless the folder has that of this very step. All ranks call this.

    loader  of the test split, a share a rank

    Raises DataError where no image of a batch can be read.
    """
    accelerator, folder, progress = trainer.accelerator, trainer.folder, trainer.progress
    if decided(accelerator, lambda: "yes" if already_measured(folder, progress.step) else None):
        return
    plan = trainer.plan
    model: Callable = kept_network(trainer.config, trainer.num_classes, folder, accelerator)

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(accelerator.device.type, AUTOCAST_DTYPES[plan.precision], enabled=plan.precision != "fp32"):
            return model(images)

    result = evaluate(
        forward,
        refuse_lost(loader),
        trainer.num_classes,
        accelerator.device,
        plan.micro_batch_size,
        reduce=lambda totals: accelerator.reduce(totals, "sum"),
    )
    refuse_none(result, loader)
    if not trainer.main:
        return
    epoch = progress.best_epoch if trainer.config.log.save_best else progress.epoch
    folder.append(
        "test",
        step=progress.step,
        epoch=epoch,
        test_loss=result.loss,
        test_accuracy=result.top1,
        test_top5=result.top5,
        test_images=result.count,
        balanced_accuracy=result.balanced,
        macro_f1=result.macro_f1,
    )
    print(f"test accuracy {result.top1:.2%} loss {result.loss:.4f} (weights of epoch {epoch})", flush=True)
