"""Checkpoints: everything that the next step depends on, in one folder that is there wholly or not at all.

`checkpoints/step-00000042/trainer.pt` holds the model, optimizer, loss scaler, random states, position in the data,
running metrics, and what the run was trained on. Where ranks hold parts, these lie beside it in `shards/`, a file a
rank (engine.recovery.shards), which any number of ranks reads under FSDP2, any ZeRO stage or none. Training waits for
the copy to host memory; a thread writes, and what went wrong there is told when it is next waited for. Nothing is read
with arbitrary pickle (`weights_only=True` throughout, also in what DeepSpeed wrote itself for older checkpoints), and
nothing whose checksum is another (engine.recovery.integrity).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object

from engine.config import ConfigError
from engine.recovery.background import Background, HostCopy
from engine.recovery.integrity import damage, write_checksums
from engine.recovery.own_form import load_own_form
from engine.recovery.portable import count_of, load_parts, optimizer_order, parts_of, restore_count, source_of
from engine.recovery.shards import FOLDER, Part, name_of, write_parts
from engine.recovery.zero_parts import ZeroParts
from engine.runs.door import CannotWrite, save_tensors, sync_folder, writing
from engine.runs.runfolder import RunFolder, delete
from engine.step.optim import allocate_state, plain_state
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
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.fsdp = accelerator.distributed_type == DistributedType.FSDP
        self._copy, self._background = HostCopy(), Background()
        self._under_way: tuple[Path, Path] | None = None
        """(draft, what it becomes) of the one that is being written."""
        several = accelerator.num_processes > 1
        self._writers = dist.new_group(backend="gloo", timeout=accelerator.init_handler.timeout) if several else None

    @property
    def sharded(self) -> bool:
        """Whether ranks hold parts of the parameters or states."""
        return self.deepspeed or self.fsdp

    def save(self, step: int, more: dict[str, Any]) -> Path:
        """Begin to write the checkpoint of `step` with what the trainer adds (plain values); all ranks call this.

        Returns what it will be called. Raises CannotWrite on every rank, also for the one before.
        """
        self.wait()
        target = self.checkpoints / f"step-{step:08d}"
        draft = self.checkpoints / f".step-{step:08d}.draft"
        generators = gather_object([random_state()]) if self.accelerator.num_processes > 1 else [random_state()]
        state: dict[str, Any] = {"format": FORMAT, "step": step, "random": generators, **more}
        if not self.sharded and self.accelerator.is_main_process:
            state["model"] = bare_module(self.model).state_dict()
            state["optimizer"] = plain_state(self.optimizer)
        zero = self._zero()
        if self.accelerator.is_main_process:
            scaler = self._scaler(zero)
            state["scaler"] = scaler.state_dict() if scaler else None
        if self.average is not None:
            state["average"] = self.average.state_dict()
        self._under_way = draft, target
        try:
            self._together(self._begin, draft)
        except BaseException:
            self._give_up()
            raise
        parts = None
        if self.sharded:
            parts = zero.parts() if zero else parts_of(*self._plain())
            state["optimizer_count"] = count_of(zero.base if zero else self._plain()[1])
        if self.accelerator.is_main_process or parts is not None:
            copied = self._copy.of(state) if self.accelerator.is_main_process else {}
            self._background.start(partial(self._write, draft, target, copied, parts))
        return target

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole; all ranks call this.

        Raises CannotWrite on every rank where it could not be written on one.
        """
        if self._under_way is None:
            return
        try:
            self._together(lambda draft: self._background.wait(), self._under_way[0], everywhere=True)
        except BaseException:
            self._give_up()
            raise
        self.last, self._under_way = self._under_way[1], None

    def settle(self, seconds: float = 60.0) -> Path | None:
        """Let this rank's thread finish where the run ends by an error, and the others cannot be waited for.

        Returns the newest checkpoint then.
        """
        with suppress(Exception):
            self._background.wait(seconds)
        if self._under_way is not None and self._under_way[1].is_dir():  # another rank's thread has finished it
            self.last = self._under_way[1]
        return self.last

    def _give_up(self) -> None:
        assert self._under_way is not None
        draft, self._under_way = self._under_way[0], None
        if self.accelerator.is_main_process:
            _forget(draft)

    def _write(self, draft: Path, target: Path, state: dict[str, Any], parts: list[Part] | None) -> None:
        """In the thread: this rank's shard, then on the first rank, when all have theirs, what is left."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        if parts is not None:
            failed: list[str | None] = [None] * ranks
            own: Exception | None = None
            try:
                with writing(draft / FOLDER / name_of(rank, ranks)):
                    write_parts(draft / FOLDER, rank, ranks, parts)
            except Exception as error:  # whatever it is: the others wait to hear of it
                own, failed[rank] = error, str(error)
            if self._writers is not None:
                dist.all_gather_object(failed, failed[rank], group=self._writers)
            if own is not None and not isinstance(own, CannotWrite):
                raise own
            if wrong := next((text for text in failed if text is not None), None):
                raise CannotWrite(0, wrong)
        if self.accelerator.is_main_process:
            with writing(draft):
                self._finish(draft, target, state)
            self.last = target

    def _begin(self, draft: Path) -> None:
        self.run.refuse_vanished()
        delete(draft)
        draft.mkdir()

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

        Raises ConfigError for a checkpoint of another network, or in a form that only another launch takes.
        """
        zero = self._zero()
        try:
            if (folder / "zero").is_dir():
                load_own_form(folder, self.model if self.deepspeed else None, self.accelerator.num_processes)
            elif zero:
                zero.load(source_of(folder, state, zero.order))
                restore_count(zero.base, state)
            elif self.sharded or "model" not in state:
                network, optimizer = self._plain()
                allocate_state(optimizer)
                load_parts(source_of(folder, state, optimizer_order(network, optimizer)), network, optimizer)
                restore_count(optimizer, state)
            else:
                bare_module(self.model).load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
            if (scaler := self._scaler(zero)) and state.get("scaler"):
                scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except ConfigError:
            raise
        except (KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"checkpoint {folder} is not of this network and optimizer: {error}") from error
        generators = state["random"]
        if len(generators) == self.accelerator.num_processes:
            restore_random_state(generators[self.accelerator.process_index])
        self.last = folder
        return state["progress"]

    def _zero(self) -> ZeroParts | None:
        return ZeroParts(self.model) if self.deepspeed and self.model.zero_optimization() else None

    def _plain(self) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Network and optimizer where ZeRO cuts nothing; DeepSpeed's stage 0 has both whole."""
        if self.deepspeed:
            return self.model.module, self.model.optimizer
        return bare_module(self.model), self.optimizer.optimizer

    def _scaler(self, zero: ZeroParts | None) -> Any:
        """fp16's loss scaler, whoever has it."""
        if zero:
            return zero.scaler
        return getattr(self.model, "torch_autocast_z0_gradscaler", None) if self.deepspeed else self.accelerator.scaler


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
