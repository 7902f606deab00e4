"""The weights that a run keeps, measured once on its test split when training has ended.

They are read from model.safetensors into a network of their own, whatever the run wrapped around the trained one. The
test split chooses nothing: it is not looked at before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from engine.config import RunConfig
from engine.runs.records import read_records
from engine.runs.runfolder import RunFolder
from engine.step.network import network_builder
from engine.step.wrap import AUTOCAST_DTYPES, share_buffers
from engine.train.evaluate import evaluate, refuse_lost, refuse_none
from engine.train.shared_folder import decided
from engine.train.trainer import Trainer


def already_measured(folder: RunFolder, step: int) -> bool:
    """Whether metrics.jsonl has the test row of the weights as they are after `step`."""
    rows = read_records(folder.metrics) if folder.metrics.is_file() else []
    return any(row.get("kind") == "test" and row.get("step") == step for row in rows)


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
