"""Rows of a long job on disk as they are made, so that a killed job goes on where it was.

Beside the file that is asked for lies `.NAME.part` while the job runs: what the job is, then a JSON row a line, flushed
after every batch. The finished file is made of it in one step; a row is therefore never there twice, nor half.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.config import ConfigError
from engine.runs.door import CannotWrite, atomic_file, cannot_write, writing


def part_of(path: Path) -> Path:
    """Where an unfinished file is."""
    return path.with_name(f".{path.name}.part")


def rows_part_of(path: Path) -> Path:
    """Where features that are not finished are: not in the journal's file, whose name may be theirs too."""
    return path.with_name(f".{path.name}.rows.part")


class Journal:
    """The rows of one job, appended in batches.

    path    the file that is made in the end
    job     what identifies the job, as plain values: another one's rows are refused
    batch   rows of all batches but the last: the job goes on at a whole batch
    beside  other unfinished files of the job

    A job that ends by an error before its first batch leaves nothing: there is nothing to go on with.

    Raises ConfigError where another process or another job is at work on `path`.
    """

    def __init__(self, path: Path, job: dict[str, Any], batch: int, beside: tuple[Path, ...] = ()) -> None:
        self.path, self.beside, self.rows = part_of(path), beside, 0
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(str(cannot_write(path, error))) from None
        try:
            self._lock(path)
            self.rows = self._found(job, batch)
        except BaseException:
            self._file.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is writing {path}") from None

    def _found(self, job: dict[str, Any], batch: int) -> int:
        """How many rows of this job are there; what is beyond the last whole batch is cut off."""
        self._file.seek(0)
        header = self._file.readline()
        before, first = _job(header), self._file.tell()
        if before != job and not self._file.readline().endswith(b"\n"):  # killed before its first batch was done
            self._file.truncate(0)
            self._append(json.dumps(job) + "\n")
            return 0
        if before != job:
            other = ", ".join(sorted(key for key in job if (before or {}).get(key) != job[key]))
            raise ConfigError(f"{self.path} is an unfinished job with other {other}; remove it, or give another output")
        ends = [self._file.seek(first)]
        for line in self._file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        rows = (len(ends) - 1) // batch * batch
        self._file.truncate(ends[rows])
        return rows

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; they are on disk when this returns."""
        lines = [json.dumps(row) + "\n" for row in rows]
        self._append("".join(lines))
        self.rows += len(lines)

    def _append(self, text: str) -> None:
        with writing(self.path):
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows so far, in order."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def remove(self) -> None:
        """The job is done: its file is there."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.rows:
            for left in (self.path, *self.beside):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
        self._file.close()


def _job(line: bytes) -> dict[str, Any] | None:
    """The job that a first line names; None for one that is cut, or no line of ours."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class FeatureFile:
    """float32 [N, F] on disk, filled batch by batch beside a journal.

    path  of the .npy or .safetensors that is made in the end
    rows  N
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        self.part = rows_part_of(path)
        self._array: np.memmap | None = None

    def put(self, first: int, features: np.ndarray) -> None:
        """Write the rows from `first` on; they are on disk when this returns."""
        if self._array is None:
            self._array = self._opened(features.shape[1])
        self._array[first : first + len(features)] = features
        self._array.flush()

    def _opened(self, width: int) -> np.memmap:
        part = self.part
        if part.is_file():
            with contextlib.suppress(ValueError):  # not one of this shape: it is begun anew
                found = np.lib.format.open_memmap(part, mode="r+")
                if found.shape == (self.rows, width):
                    return found
        try:
            with writing(self.path, part):
                array = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(self.rows, width))
                with part.open("rb+") as file:  # all of it now: a page that finds no room later ends the process
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        except CannotWrite:
            part.unlink(missing_ok=True)
            raise
        return array

    def finish(self, paths: list[str]) -> None:
        """Give the file its name; a .safetensors has the array as `features` and the paths in its metadata."""
        part = self.part
        self._array = None
        if not part.exists():  # a job that was killed after this had been done
            return
        if self.path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            with atomic_file(self.path) as temporary:
                save_file({"features": np.load(part)}, temporary, metadata={"paths": json.dumps(paths)})
            part.unlink()
        else:
            part.replace(self.path)
