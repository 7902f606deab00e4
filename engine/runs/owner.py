"""Who writes into a run folder: one process at a time, named by its number and machine.

The lock is the operating system's (POSIX record lock on `.owner`): it ends with the process, however that ends, so
what a killed owner left is stale by itself. The file says who it is, for the one who is refused. Where a network's disk
has no locks, the file alone decides.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from engine.config import ConfigError
from engine.runs.door import writing
from engine.runs.wording import moment

NAME = ".owner"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""
SLACK = 2.0
"""Seconds by which a process's start may differ from what was written of it."""


@dataclass(frozen=True)
class Owner:
    """What the file says."""

    pid: int
    host: str
    since: float
    """Unix time."""
    started: float
    """When the process began, in Unix time: its number may belong to another one by now."""
    launcher: int
    """The launcher's process number."""
    run_id: str
    """torchrun's, the same for all its restarts; else empty."""
    held: bool = True
    """False once it was given back."""

    @classmethod
    def this_process(cls) -> Owner:
        """The one that asks."""
        return cls(
            os.getpid(),
            socket.gethostname(),
            time.time(),
            _started(os.getpid()) or 0.0,
            os.getppid(),
            os.environ.get("TORCHELASTIC_RUN_ID", ""),
        )

    @property
    def alive(self) -> bool:
        """Whether that process may still be there: certain on this machine only."""
        if self.host != socket.gethostname():
            return self.held
        started = _started(self.pid)
        return self.held and started is not None and abs(started - self.started) <= SLACK


def read_owner(folder: Path) -> Owner | None:
    """Who owns or owned `folder`; None where nobody did or the file is torn."""
    try:
        return Owner(**json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


class Ownership:
    """Holds `folder` from its making to `release`.

    Raises ConfigError, naming process and machine, where another process writes into it; CannotWrite.
    """

    _held: dict[tuple[int, int] | None, Ownership] = {}
    """By device and inode: record locks do not keep a process from itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        if _key(folder) in self._held:  # not even opened: closing it again would free this process's own lock
            raise ConfigError(self._in_use(Owner.this_process()))
        before = read_owner(folder)
        with writing(folder / NAME):
            file = (folder / NAME).open("a+", encoding="utf-8")
        if not self._locked(file, before):
            file.close()
            raise ConfigError(self._in_use(read_owner(folder)))
        self._file, self._key = file, _key(folder)
        self._held[self._key] = self
        self._write(Owner.this_process())

    @staticmethod
    def _locked(file: IO[str], before: Owner | None) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in NO_LOCKS and not (before is not None and before.alive)
        return True

    def _in_use(self, owner: Owner | None) -> str:
        if owner is None:
            return f"{self.folder} is in use: another process writes into it; give another --output"
        return (
            f"{self.folder} is in use: process {owner.pid} on {owner.host} writes into it since {moment(owner.since)}. "
            f"Wait for it, stop it (kill {owner.pid}), or give another --output. If that machine is no more, delete "
            f"{self.folder / NAME}"
        )

    def _write(self, owner: Owner) -> None:
        assert self._file is not None
        with writing(self.folder / NAME):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(asdict(owner)) + "\n")
            self._file.flush()

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        if self._file is None:
            return
        try:
            with suppress(OSError):  # it has gone or is full: the lock ends all the same
                self._write(replace(Owner.this_process(), held=False))
        finally:
            self._held.pop(self._key, None)
            file, self._file = self._file, None
            with suppress(OSError):
                file.close()


def _key(folder: Path) -> tuple[int, int] | None:
    """Device and inode of the file; None where there is none."""
    try:
        found = (folder / NAME).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _started(pid: int) -> float | None:
    """When that process began, in Unix time; None where there is none."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
