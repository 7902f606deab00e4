"""The folder that a run leaves behind: written atomically, by one owner at a time, never another run's."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.config import ConfigError, RunConfig, from_yaml, require, to_yaml
from engine.runs.door import CannotWrite, atomic_file, cannot_write, reason, writing
from engine.runs.output import as_file_name, refuse_folder
from engine.runs.owner import NAME as OWNER
from engine.runs.owner import Ownership
from engine.runs.records import RecordWriter

LEFT_BEHIND = re.compile(r"\..+\.(\d+)\.tmp|\.step-\d+\.draft")
"""What a writer that was killed leaves: a temporary file with its process number, or half a checkpoint."""


def sweep(folder: Path) -> list[Path]:
    """Delete what killed writers left below `folder`; returns it. For its owner, before it writes.

    Folders below it that have owners of their own are theirs, and may be written at this moment: `--output runs`.
    """
    found = []
    for path in list(_below(folder)):
        match = LEFT_BEHIND.fullmatch(path.name)
        if match is None or (match[1] and int(match[1]) != os.getpid() and _exists(int(match[1]))):
            continue  # not ours, or another process's that writes at this moment: a report
        with writing(path):
            delete(path)
        found.append(path)
    return found


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))
        folders[:] = [name for name in folders if not os.path.lexists(Path(place, name, OWNER))]


def delete(path: Path) -> None:
    """Delete a folder, a file or a link, which is not followed. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class RunFolder:
    """One run's files: config.yaml, plan.json, metrics.jsonl, monitor.jsonl, checkpoints/, model.safetensors."""

    def __init__(self, path: Path, ownership: Ownership | None = None) -> None:
        self.path = path
        self.ownership = ownership
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.monitor = path / "monitor.jsonl"
        self.weights = path / "model.safetensors"
        self._rows: RecordWriter | None = None
        self._identity = identity_of(path)

    @classmethod
    def create(cls, config: RunConfig, arch: str, data: str) -> RunFolder:
        """A new folder, owned by this process.

        Raises ConfigError where `--output` names another run's folder, one that another process writes into, or
        something that is not a folder.
        """
        output = config.log.output
        if output is None:
            arch = as_file_name(arch)
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            output = Path("runs") / f"{arch}-{data}-{stamp}"
            while output.exists():
                stamp += "x"
                output = Path("runs") / f"{arch}-{data}-{stamp}"
        refuse_folder(output)
        refuse_run_in(output)
        try:
            (output / "checkpoints").mkdir(parents=True, exist_ok=True)
            folder = cls(output, Ownership(output))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            why = reason(output, error) if isinstance(error, OSError) else error
            raise ConfigError(f"--output {output}: cannot be made a folder: {why}") from None
        try:
            refuse_run_in(output)  # it may have become one until this process owned it
            sweep(output)
            folder.write_text("config.yaml", to_yaml(config))
        except CannotWrite as error:
            folder.close()
            raise ConfigError(f"--output {output}: {error}") from None
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that goes on, owned by this process and swept of what a killed one left.

        Raises ConfigError where another process writes into it, where it cannot be written, and where its config.yaml
        was cut.
        """
        from_yaml(path / "config.yaml", whole=True)
        try:
            folder = cls(path, Ownership(path))
            try:
                sweep(path)
                folder.checkpoints.mkdir(exist_ok=True)
            except BaseException:
                folder.close()
                raise
        except OSError as error:
            raise ConfigError(f"--resume {path}: {cannot_write(path / 'config.yaml', error)}") from None
        return folder

    def close(self) -> None:
        """Give the folder back; harmless when repeated."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        if self.ownership is not None:
            self.ownership.release()

    def refuse_vanished(self) -> None:
        """Raise CannotWrite where the folder is not the one any more that it was when the run began."""
        if self._identity is None:  # it was not there then
            self._identity = identity_of(self.path)
        elif identity_of(self.path) != self._identity:
            raise CannotWrite(errno.ENOENT, f"the run folder {self.path} is gone: moved or deleted meanwhile")

    @contextmanager
    def file(self, path: Path) -> Iterator[Path]:
        """`atomic_file` inside the folder. Raises CannotWrite."""
        self.refuse_vanished()
        with atomic_file(path) as temporary:
            yield temporary

    def write_text(self, name: str, text: str) -> None:
        """Write a small file in one step."""
        with self.file(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file in one step."""
        with self.file(self.path / name) as temporary:
            temporary.write_bytes(content)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON in one step."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def append(self, kind: str, **row: Any) -> None:
        """Add a row to metrics.jsonl. The first rank only: one writer a file."""
        self.refuse_vanished()
        with writing(self.metrics):
            if self._rows is None:
                self._rows = RecordWriter(self.metrics)
            self._rows.write({"kind": kind, **row, "time": round(time.time(), 3)})


def identity_of(path: Path) -> tuple[int, int] | None:
    """Device and inode; None where there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_run_in(output: Path) -> None:
    """Raise ConfigError where a run is in `output` already."""
    try:
        holds_run = (output / "config.yaml").exists() or (output / "metrics.jsonl").exists()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--output {output}: cannot be made a folder: {error}") from None
    require(
        not holds_run,
        f"--output {output} holds another run; go on with it by --resume {output}, or give a new --output",
    )
