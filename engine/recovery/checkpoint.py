"""Checkpoints: everything that the next step depends on, in one folder that is there wholly or not at all.

`checkpoints/step-00000042/trainer.pt` holds the model, optimizer, loss scaler, random states, position in the data,
running metrics, and what the run was trained on; under DeepSpeed the parameters and optimizer lie beside it in `zero/`,
a shard a rank. Nothing is read with arbitrary pickle (`weights_only=True` throughout, DeepSpeed's shards included), and
nothing whose checksum is another (engine.recovery.integrity).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object

from engine.config import ConfigError
from engine.recovery.integrity import damage, write_checksums
from engine.runs.door import CannotWrite, save_tensors, sync_folder, writing
from engine.runs.runfolder import RunFolder, delete
from engine.step.optim import plain_state
from engine.step.wrap import bare_module

FORMAT = 1
NAME = re.compile(r"step-(\d+)")

logger = logging.getLogger("hcr")


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


class Average(Protocol):
    """What is evaluated in place of the weights: it goes into a checkpoint beside them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Checkpointer:
    """Saves and restores one run's training state.

    accelerator, model, optimizer    as `wrap` gave them
    run                              the run's folder, shared by all ranks
    keep                             newest checkpoints to keep; 0 is all
    average                          the weights' moving average, where there is one
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model,
        optimizer,
        run: RunFolder,
        keep: int,
        average: Average | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.run, self.checkpoints = run, run.checkpoints
        self.keep = keep
        self.average = average
        self.last: Path | None = None
        """The newest checkpoint that was written or restored."""
        self.passed_over: list[Path] = []
        """Damaged checkpoints that a resume passed over; deleted when a new one is whole."""
        self.sharded = accelerator.distributed_type == DistributedType.DEEPSPEED

    def save(self, step: int, more: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` with what the trainer adds (plain values); all ranks call this."""
        target = self.checkpoints / f"step-{step:08d}"
        draft = self.checkpoints / f".step-{step:08d}.draft"
        generators = gather_object([random_state()]) if self.accelerator.num_processes > 1 else [random_state()]
        state: dict[str, Any] = {"format": FORMAT, "step": step, "random": generators, **more}
        if not self.sharded and self.accelerator.is_main_process:
            state["model"] = bare_module(self.model).state_dict()
            state["optimizer"] = plain_state(self.optimizer)
            state["scaler"] = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if self.average is not None:
            state["average"] = self.average.state_dict()
        try:
            self._together(self._begin, draft)
            if self.sharded:
                self._together(self._write_shard, draft, everywhere=True)
            self._together(self._finish, draft, target, state)
        finally:
            if self.accelerator.is_main_process:
                _forget(draft)
        self.last = target
        return target

    def _begin(self, draft: Path) -> None:
        self.run.refuse_vanished()
        delete(draft)
        draft.mkdir()

    def _write_shard(self, draft: Path) -> None:
        self.model.save_checkpoint(str(draft / "zero"), tag="state", exclude_frozen_parameters=False)

    def _finish(self, draft: Path, target: Path, state: dict[str, Any]) -> None:
        """Write what is left, then make the draft the checkpoint."""
        save_tensors(state, draft / "trainer.pt")
        write_checksums(draft)
        sync_folder(draft)
        delete(target)
        draft.rename(target)
        sync_folder(self.checkpoints)
        self._prune(target)

    def _together(self, work: Callable[..., None], draft: Path, *more: Any, everywhere: bool = False) -> None:
        """Do `work` on the first rank or on all, wait for each other, and fail together.

        Raises CannotWrite on every rank where it could not be done on one.
        """
        failed: str | None = None
        if everywhere or self.accelerator.is_main_process:
            try:
                with writing(draft):
                    work(draft, *more)
            except CannotWrite as error:
                if self.accelerator.num_processes == 1:
                    raise
                failed = str(error)
        if self.accelerator.num_processes > 1:
            failed = next((text for text in gather_object([failed]) if text is not None), None)
        if failed is not None:
            raise CannotWrite(0, failed)

    def _prune(self, newest: Path) -> None:
        """Keep the newest that are wanted, of those up to `newest`: a later one is of what was taken back."""
        for damaged in self.passed_over:
            if damaged != newest:
                delete(damaged)
        self.passed_over.clear()
        if self.keep:
            found = checkpoint_folders(self.checkpoints)
            for old in found[: found.index(newest) + 1][: -self.keep]:
                delete(old)

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


def _forget(draft: Path) -> None:
    """Delete a draft that did not become a checkpoint, as far as the disk lets us."""
    try:
        delete(draft)
    except OSError as error:
        logger.info("%s is left behind: %s", draft, error)


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a trainer.pt on the CPU, read without pickle.

    Raises ConfigError where it or its checkpoint is missing, damaged, or written by another format of this project.
    """
    import pickle

    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    if (wrong := damage(path.parent)) is not None:
        raise ConfigError(f"checkpoint {path.parent} cannot be read: {wrong}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"checkpoint {path} cannot be read: it holds more than tensors and plain values, which is not run"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"checkpoint {path} cannot be read: {first_line(error)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of format {FORMAT}")
    return state


def first_line(error: Exception) -> str:
    """What a library says of it, without its advice and its frames."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def named_checkpoint(resume: Path) -> Path | None:
    """The checkpoint that a path names: RUN/checkpoints/step-N, or something in it; None for a run folder."""
    for folder in (resume, *resume.parents):
        if NAME.fullmatch(folder.name) and folder.parent.name == "checkpoints" and folder.is_dir():
            return folder
    return None


def newest_whole(checkpoints: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that is whole, None before the first, and those passed over with what is wrong with them.

    Raises ConfigError where there are some and none is whole.
    """
    passed: list[tuple[Path, str]] = []
    for folder in reversed(checkpoint_folders(checkpoints)):
        if (wrong := damage(folder)) is None:
            return folder, passed
        passed.append((folder, wrong))
    if passed:
        raise ConfigError("no checkpoint is whole: " + "; ".join(f"{folder}: {wrong}" for folder, wrong in passed))
    return None, []


def checkpoint_to_resume(resume: Path, checkpoints: Path) -> Path | None:
    """The checkpoint that `--resume` means: the one it names, else the newest whole one; None before the first.

    What is passed over is said through the logger `hcr`. Raises ConfigError as `newest_whole`.
    """
    if (named := named_checkpoint(resume)) is not None:
        return named
    found, passed = newest_whole(checkpoints)
    for folder, wrong in passed:
        logger.info("passed over: checkpoint %s (%s)", folder, wrong)
    return found
