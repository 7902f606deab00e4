"""Checkpoints: everything that the next step depends on, in one folder that is there wholly or not at all.

`checkpoints/step-00000042/trainer.pt` holds the model, optimizer, loss scaler, random states, position in the data
and running metrics; under DeepSpeed the parameters and optimizer lie beside it in `zero/`, a shard a rank. Nothing is
read with arbitrary pickle: `weights_only=True` throughout, DeepSpeed's shards included.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object

from engine.config import ConfigError
from engine.runs.runfolder import atomic_file, sync_folder
from engine.step.ema import WeightAverage
from engine.step.wrap import bare_module

FORMAT = 1
NAME = re.compile(r"step-(\d+)")


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in checkpoints.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def random_state() -> dict[str, torch.Tensor]:
    """The states of torch's generators on this rank."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def without_pickle() -> Iterator[None]:
    """Make every torch.load inside use weights_only=True, also those in DeepSpeed that ask for the contrary."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler, ZeroStageEnum, fragment_address]
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


class Checkpointer:
    """Saves and restores one run's training state.

    accelerator, model, optimizer    as `wrap` gave them
    checkpoints                      the run's checkpoint folder, shared by all ranks
    keep                             newest checkpoints to keep; 0 is all
    average                          the weights' moving average, where there is one
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model,
        optimizer,
        checkpoints: Path,
        keep: int,
        average: WeightAverage | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.checkpoints = checkpoints
        self.keep = keep
        self.average = average
        self.last: Path | None = None
        """The newest checkpoint that was written or restored."""
        self.sharded = accelerator.distributed_type == DistributedType.DEEPSPEED

    def save(self, step: int, more: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` with what the trainer adds (plain values); all ranks call this."""
        target = self.checkpoints / f"step-{step:08d}"
        draft = self.checkpoints / f".step-{step:08d}.draft"
        generators = gather_object([random_state()]) if self.accelerator.num_processes > 1 else [random_state()]
        if self.accelerator.is_main_process:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        state: dict[str, Any] = {"format": FORMAT, "step": step, "random": generators, **more}
        if self.sharded:
            self.model.save_checkpoint(str(draft / "zero"), tag="state", exclude_frozen_parameters=False)
        elif self.accelerator.is_main_process:
            state["model"] = bare_module(self.model).state_dict()
            state["optimizer"] = self.optimizer.state_dict()
            state["scaler"] = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.accelerator.is_main_process:
            with atomic_file(draft / "trainer.pt") as temporary:
                torch.save(state, temporary)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
            sync_folder(self.checkpoints)
            self._prune()
        self.accelerator.wait_for_everyone()
        self.last = target
        return target

    def _prune(self) -> None:
        if self.keep:
            for old in checkpoint_folders(self.checkpoints)[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def restore(self, folder: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Load the checkpoint in `folder` into model, optimizer, scaler and generators; returns the progress.

        state  what `read_state` gave of its trainer.pt

        Raises ConfigError for a checkpoint of another network.
        """
        try:
            if self.sharded:
                with without_pickle():
                    self.model.load_checkpoint(str(folder / "zero"), tag="state")
            else:
                bare_module(self.model).load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                if self.accelerator.scaler and state["scaler"]:
                    self.accelerator.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"checkpoint {folder} is not of this network and optimizer: {error}") from error
        generators = state["random"]
        if len(generators) == self.accelerator.num_processes:
            restore_random_state(generators[self.accelerator.process_index])
        self.last = folder
        return state["progress"]


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a trainer.pt on the CPU, read without pickle.

    Raises ConfigError where it is missing, damaged, or written by another format of this project.
    """
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"no checkpoint at {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ConfigError(f"checkpoint {path} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of format {FORMAT}")
    return state


def checkpoint_to_resume(resume: Path, checkpoints: Path) -> Path | None:
    """The checkpoint that `--resume` means: the one it names, else the newest of the run; None before the first."""
    for folder in (resume, *resume.parents):
        if NAME.fullmatch(folder.name) and folder.is_dir():
            return folder
    found = checkpoint_folders(checkpoints)
    return found[-1] if found else None
