"""The run folder among ranks: the first one owns it and decides, and a refusal reaches all of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

from engine.config import ConfigError, RunConfig, find_run, to_yaml
from engine.config.byte_sizes import gib
from engine.data.sources.holdout import NAME as HOLDOUT
from engine.plan.workload import Planned
from engine.recovery.checkpoint import Checkpointer, checkpoint_folders, named_checkpoint, newest_whole
from engine.recovery.same_run import refuse_other_run
from engine.report.memory_picture import planned_picture
from engine.runs.door import CannotWrite
from engine.runs.owner import NAME as OWNER
from engine.runs.runfolder import RunFolder
from engine.runs.wording import listed
from engine.train.decoder_crash import after_crashes

IN_PARTS = (DistributedType.DEEPSPEED, DistributedType.FSDP)
"""Where every rank writes its part of a checkpoint into the folder."""
PATIENCE = 30.0
"""Seconds after which a network's disk shows all machines what one of them has made."""


def decided(accelerator: Accelerator, work: Callable[[], str | None]) -> str | None:
    """What `work` gives on the first rank, on all of them. Raises its ConfigError on all of them."""
    told: list[str | None] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except ConfigError as error:
            told[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    if told[1] is not None:
        raise ConfigError(told[1])
    return told[0]


def open_folder(config: RunConfig, asked: RunConfig, arch: str, data: str, accelerator: Accelerator) -> RunFolder:
    """The run folder: a new one, or that of the run to resume, as `asked` for before its pixels were resolved.

    Raises ConfigError where it is another run's or in use, and where ranks that write into it do not share it.
    """
    owned: list[RunFolder] = []

    def find() -> str:
        if config.resume is None:
            owned.append(RunFolder.create(config, arch, data))
        else:
            path = find_run(config.resume, str(config.log.output or "") or None)
            owned.append(RunFolder.open(path))
            try:
                refuse_other_run(asked, path)
                after_crashes(owned[0])
            except BaseException:
                owned[0].close()
                raise
        return str(owned[0].path)

    path = decided(accelerator, find)
    assert path is not None
    folder = owned[0] if owned else RunFolder(Path(path))
    if accelerator.num_processes > 1 and accelerator.distributed_type in IN_PARTS:
        first = decided(accelerator, lambda: _owner_of(folder))
        patience = min(PATIENCE, accelerator.init_handler.timeout.total_seconds() / 4)
        without = gather_object([None if sees(folder, first, patience) else socket.gethostname()])
        if missing := sorted({host for host in without if host is not None}):
            if owned:
                owned[0].close()
                if config.resume is None:
                    _take_back(folder)
            raise ConfigError(
                f"the run folder {folder.path} is not the same on {listed(missing)}: under ZeRO and FSDP2 every "
                "process writes its part of a checkpoint into it; give an --output on a disk that all machines share"
            )
    return folder


def sees(folder: RunFolder, first: str | None, patience: float) -> bool:
    """Whether this machine has the folder whose owner's file says `first`, or has it within so many seconds."""
    deadline = time.monotonic() + patience
    while _owner_of(folder) != first:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
        with suppress(OSError):  # a network's disk looks again at what it remembers as not there
            list(folder.path.parent.iterdir())
    return True


def _owner_of(folder: RunFolder) -> str | None:
    try:
        return (folder.path / OWNER).read_text(encoding="utf-8")
    except OSError:
        return None


def _take_back(folder: RunFolder) -> None:
    """Delete what making the folder has made; what else is in it stays, and the folder with it."""
    with suppress(OSError):
        for name in ("config.yaml", OWNER):
            (folder.path / name).unlink(missing_ok=True)
        folder.checkpoints.rmdir()
        folder.path.rmdir()


def has_begun(config: RunConfig) -> bool:
    """Whether this run goes on from a checkpoint: the weights that it began with may be gone by then."""
    if config.resume is None:
        return False
    run = find_run(config.resume, str(config.log.output or "") or None)
    return named_checkpoint(Path(config.resume)) is not None or bool(checkpoint_folders(run / "checkpoints"))


def choose_checkpoint(
    config: RunConfig, folder: RunFolder, accelerator: Accelerator, checkpointer: Checkpointer
) -> Path | None:
    """The checkpoint to go on from: the one that --resume names, else the newest whole one; None before the first.

    What is passed over is said, and forgotten when the next one is whole. Raises ConfigError where none is whole.
    """
    if config.resume is None:
        return None

    def choose() -> str | None:
        if (named := named_checkpoint(Path(config.resume or ""))) is not None:
            return str(named)
        found, passed = newest_whole(folder.checkpoints)
        for damaged, wrong in passed:
            print(f"passed over: checkpoint {damaged} ({wrong})", flush=True)
            folder.append("event", event="passed_over", path=str(damaged), reason=wrong)
        checkpointer.passed_over = [damaged for damaged, _ in passed]
        return None if found is None else str(found)

    chosen = decided(accelerator, choose)
    return None if chosen is None else Path(chosen)


def describe(folder: RunFolder, config: RunConfig, planned: Planned, split: dict[str, Any] | None = None) -> None:
    """Write what is known before the first step: the description, the plan, its picture, what was held out.

    split  engine.data.sources.holdout's record; one that is there already stays

    Raises ConfigError.
    """
    try:
        if split is not None and not (folder.path / HOLDOUT).exists():
            folder.write_json(HOLDOUT, split)
        if config.resume is not None:
            folder.write_text("config.yaml", to_yaml(config))
        folder.write_json("plan.json", planned.plan.as_dict())
        if config.log.plots and (picture := planned_picture(planned)):
            folder.write_bytes("memory.png", picture)
    except CannotWrite as error:
        raise ConfigError(str(error)) from None


def to_go_on(folder: Path, last: Path | None) -> str:
    """What a person does after a file of a run could not be written.

    last  the newest checkpoint
    """
    if not folder.is_dir():
        return "put it back and go on with --resume FOLDER, wherever it is now"
    if last is None:
        return "no checkpoint was written yet; mend that, then start again"
    size = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    return f"last checkpoint {last} ({gib(size)}); mend that, then go on with --resume {folder}"
