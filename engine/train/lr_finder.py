"""`launch/train.py --find-lr`: the learning rate is raised over a few steps, and the loss says which one to take.

The steps are a run's own: its images, augmentation, plan, precision, loss and optimizer. Nothing of it is kept but the
curve: the session works in a temporary folder, and after each repetition weights, statistics and the optimizer's state
are what they were.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.config import ConfigError, RunConfig, require
from engine.data.sources.source import DataError
from engine.report.lr_picture import lr_picture
from engine.runs.door import CannotWrite, atomic_file, writing
from engine.runs.output import as_file_name, refuse_folder
from engine.runs.records import finite
from engine.runs.runfolder import refuse_run_in
from engine.step.wrap import bare_module
from engine.train.evaluate import told
from engine.train.lr_curve import Suggestion, Sweep, has_diverged, rates_between, suggest
from engine.train.lr_range import FLAG, Range
from engine.train.run import fail, first_rank, say, train

REPETITIONS = 3
SCRATCH = "hcr-find-lr-"
"""How its temporary folders begin."""
EXIT_NOTHING = 1
"""No rate lowered the loss."""


def sweep(trainer: Any, rates: Sequence[float], first_epoch: int = 0) -> Sweep:
    """Losses [steps] of one step at each of `rates`, until they diverge or a stop signal comes; all is put back.

    trainer      a Trainer (engine.train.trainer) that has not trained yet
    first_epoch  whose order and augmentation of the images is used; a short epoch is followed by the next

    Raises DataError at a batch whose images have gone, and for an epoch without a readable one.
    """
    before = kept(trainer)
    step, progress, losses = trainer.step, trainer.progress, []
    usual, step.rate = step.rate, lambda number: rates[len(losses)]
    trainer.model.train()
    step.begin_epoch()
    try:
        epoch = first_epoch
        while len(losses) < len(rates) and not _is_over(trainer, losses, len(rates)):
            seen = 0.0
            for batch, _ in trainer._batches(epoch, 0):
                sums = _sums(trainer)
                trainer.rescue.take(batch)
                loss, images = (new - old for new, old in zip(_sums(trainer), sums, strict=True))
                progress.step += 1
                seen += images
                if images:
                    losses.append(loss / images)
                elif all(trainer.accelerator.gather(torch.tensor([batch.lost], device=batch.labels.device)).tolist()):
                    raise DataError(f"no image of a whole batch could be read{told(trainer.train_loader.bad_images)}")
                if len(losses) == len(rates) or _is_over(trainer, losses, len(rates)):
                    break
            if not seen:
                loader = trainer.train_loader
                raise DataError(f"no readable image in {loader.place}{told(loader.bad_images)}")
            epoch += 1
    finally:
        step.rate = usual
        put_back(trainer, before)
    return Sweep(tuple(rates), tuple(losses))


def _is_over(trainer: Any, losses: Sequence[float], steps: int) -> bool:
    if trainer.accelerator.num_processes == 1 and trainer.interrupt.received is not None:
        return True
    return bool(losses) and has_diverged(losses, steps)


def _sums(trainer: Any) -> tuple[float, float]:
    """(loss, images) summed over the steps so far, over all ranks."""
    meters = trainer.accelerator.gather(trainer.step.meter[None]).reshape(-1, len(trainer.step.meter))
    loss, _, images = meters[:, :3].sum(dim=0).tolist()
    return loss, images


def kept(trainer: Any) -> dict[str, Any]:
    """Copies in host memory of all that a step changes: weights, statistics, the optimizer's state, the loss scale."""
    scaler = trainer.accelerator.scaler
    return {
        "model": _copied(bare_module(trainer.model).state_dict()),
        "optimizer": _copied(trainer.optimizer.state_dict()),
        "scaler": None if scaler is None else dict(scaler.state_dict()),
        "progress": copy.copy(vars(trainer.progress)),
    }


def put_back(trainer: Any, before: dict[str, Any]) -> None:
    """Undo what `sweep` did."""
    bare_module(trainer.model).load_state_dict(before["model"])
    trainer.optimizer.load_state_dict(copy.deepcopy(before["optimizer"]))
    trainer.optimizer.zero_grad()
    if before["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(before["scaler"])
    vars(trainer.progress).update(before["progress"])


def _copied(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else copy.deepcopy(value)


def find_lr(config: RunConfig, span: Range) -> int:
    """Sweep as `config` would train, draw the curve, print the suggestion; returns the exit code.

    0 a rate was found, 1 none lowered the loss or the curve cannot be written, 2 the description cannot be meant, 128 +
    signal when stopped.
    """
    try:
        require(
            config.resume is None,
            f"{FLAG} looks before a run begins; to look from trained weights: --pretrained {config.resume}",
        )
        require(
            os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true",
            f"{FLAG} puts weights and states back after each repetition, and DeepSpeed's engine keeps copies of its "
            "own; launch without it, the rate is the same",
        )
        folder = _folder(config)
        scratch = _scratch()
    except ConfigError as error:
        return fail(error)
    log = replace(config.log, output=scratch / "run", plots=False, monitor_interval=0.0, profile=False)
    try:
        return train(replace(config, log=log), work=lambda session: _look(session, config, span, folder))
    except CannotWrite as error:
        return fail(error, EXIT_NOTHING)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _folder(config: RunConfig) -> Path | None:
    """--output as a folder that the first rank can write into, before anything is looked for; None is a new one in
    runs/. Raises ConfigError."""
    if config.log.output is None:
        return None
    folder = Path(config.log.output)
    refuse_folder(folder)
    refuse_run_in(folder)
    return folder


def _scratch() -> Path:
    """A temporary folder, named by this process; those of killed ones are swept. Raises ConfigError."""
    try:
        place = Path(tempfile.gettempdir())
        for left in place.glob(f"{SCRATCH}*"):
            if (owner := re.fullmatch(rf"{SCRATCH}(\d+)-\w+", left.name)) and not psutil.pid_exists(int(owner[1])):
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
    except OSError as error:
        raise ConfigError(f"{FLAG} works in a temporary folder, and none can be made: {error.strerror}") from None


def _look(session: Any, config: RunConfig, span: Range, folder: Path | None) -> int:
    trainer = session.trainer
    trainer.rescue.allocate_state()
    say(
        f"{FLAG}: {REPETITIONS} × {span.steps} steps from {span.low:g} to {span.high:g}, {config.model.arch} on "
        f"{session.source.name}, {config.optim.optimizer}"
    )
    rates = rates_between(span.low, span.high, span.steps)
    epochs = -(-span.steps // trainer.steps_per_epoch)
    sweeps = []
    for repetition in range(REPETITIONS):
        sweeps.append(sweep(trainer, rates, repetition * epochs))
        if trainer.interrupt.received is not None:
            return trainer.interrupt.exit_code
    found = suggest(sweeps)
    if first_rank():
        _show(sweeps, found, config, session.source.name, folder)
    return 0 if found.rate is not None else EXIT_NOTHING


def _show(sweeps: Sequence[Sweep], found: Suggestion, config: RunConfig, data: str, folder: Path | None = None) -> None:
    """Write curve and figures into `folder`, or a new one in runs/, and print what they say. Raises CannotWrite."""
    if folder is None:
        arch = as_file_name(config.model.arch)
        folder = Path("runs") / f"{arch}-{data}-{datetime.now():%Y%m%d-%H%M%S}-find-lr"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    scale = config.optim.lr / config.optim.peak_lr  # what --lr is to the rate of this batch
    suggested = None if found.rate is None else float(f"{found.rate * scale:.2g}")
    with atomic_file(folder / "find-lr.png") as temporary:
        temporary.write_bytes(lr_picture(sweeps, found, f"{config.model.arch} on {data}, {config.optim.optimizer}"))
    figures = {
        "suggested_lr": suggested,
        "sureness": found.sureness,
        "factor": found.factor if found.each else None,
        "each": [rate * scale for rate in found.each],
        "rates": sweeps[0].rates,
        "losses": [sweep.losses for sweep in sweeps],
    }
    with atomic_file(folder / "find-lr.json") as temporary:
        temporary.write_text(json.dumps(finite(figures)) + "\n", encoding="utf-8")
    print(f"curve {folder / 'find-lr.png'}")
    if suggested is None:
        print(f"no rate between {sweeps[0].rates[0]:g} and {sweeps[0].rates[-1]:g} lowered the loss; no suggestion")
        return
    said = ", ".join(f"{rate * scale:.2g}" for rate in found.each)
    print(f"suggested --lr {suggested:g}  {found.sureness}: {len(found.each)} repetitions say {said}")
    if not found.fell:
        print(
            f"no rate lowered the loss in {len(sweeps[0].rates)} steps: this is a third of where it begins to rise; "
            f"more steps may tell more ({FLAG} LOW:HIGH:STEPS)"
        )
    if not found.diverged:
        print(f"no rate up to {sweeps[0].rates[-1]:g} was too high: the range may end too early ({FLAG} LOW:HIGH)")
