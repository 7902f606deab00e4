"""The door through which everything is written: whole or not at all, and what stands in the way is said in words."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from engine.config.byte_sizes import gib

SPARE = 1 << 20
"""Bytes under which a disk counts as full, where a library does not say what failed."""
REASONS = {
    errno.EDQUOT: "the quota on this disk is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "there is no permission to write there",
    errno.EPERM: "it must not be written there",
    errno.ESTALE: "the network's disk lost it",
    errno.EIO: "the disk has an input/output error",
}

DRAFT = ".tmp"
"""How the name of a file ends that is being written."""
STALE = 3600.0
"""Seconds after which a draft that nobody wrote to has no writer any more."""
_drafts: set[Path] = set()
"""Those of this process, and of the one that it was forked from."""


class CannotWrite(OSError):
    """A file that could not be written; the message says which and why. Nothing half-written is left."""

    def __str__(self) -> str:
        return str(self.args[-1])


def reason(path: Path, error: OSError) -> str:
    """Why `path` could not be written, in words."""
    folder = path.parent
    if error.errno == errno.ENOSPC:
        free = f": {gib(shutil.disk_usage(folder).free)} are free" if folder.is_dir() else ""
        return f"the disk is full{free}"
    if error.errno == errno.EFBIG:
        return "files may not become that large here (ulimit -f)"
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir():
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not nearest.is_dir():
            return f"{nearest} is a file"
        return f"its folder {folder} is gone: moved or deleted meanwhile"
    return REASONS.get(error.errno or 0, error.strerror or str(error))


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """What to raise for `error`, which was met while `path` was written."""
    if isinstance(error, CannotWrite):
        return error
    return CannotWrite(error.errno or 0, f"{path} cannot be written: {reason(path, error)}")


def state_of(path: Path) -> OSError | None:
    """What is wrong with the place of `path` by now, for libraries that say only that they failed."""
    import resource

    if not path.parent.is_dir():
        return FileNotFoundError(errno.ENOENT, "")
    if shutil.disk_usage(path.parent).free < SPARE:
        return OSError(errno.ENOSPC, "")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and path.exists() and path.stat().st_size >= limit - SPARE:
        return OSError(errno.EFBIG, "")
    if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
        return OSError(errno.EROFS, "")
    return None


def _told_by(error: Exception) -> OSError | None:
    """The system's error, with which one of safetensors ends: a quota that is used up shows nowhere else."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn what goes wrong inside, while `path` (as `temporary`) is written, into CannotWrite.

    Libraries that write in native code raise errors of their own: theirs become CannotWrite where the disk explains it.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
    except Exception as error:
        if (cause := _told_by(error) or state_of(temporary or path)) is None:
            raise
        raise cannot_write(path, cause) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path`; on success it is flushed to disk and takes `path`'s name in one step.

    Its mode is the umask's, also where a library (safetensors) puts a file of its own in its place. Raises CannotWrite.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    _sweep_drafts_of(path)
    _drafts.add(temporary)
    try:
        with writing(path, temporary):
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        _forget(temporary)
        _drafts.discard(temporary)


def _sweep_drafts_of(path: Path) -> None:
    """Delete what writers of this very file left that were killed: an evaluation, a report, an export.

    A number that no process has here may be one of another machine that writes now; such a draft is not an hour old.
    """
    known = re.compile(rf"\.{re.escape(path.name)}\.\d+{re.escape(DRAFT)}")
    with suppress(OSError), os.scandir(path.parent) as found:
        for one in found:
            if known.fullmatch(one.name) and time.time() - one.stat(follow_symlinks=False).st_mtime > STALE:
                Path(one.path).unlink()


def forget_drafts() -> None:
    """Delete what this process writes at this moment, as far as the disk lets us: for what ends it at once."""
    for temporary in list(_drafts):
        if temporary.name.endswith(f".{os.getpid()}{DRAFT}"):  # not its parent's, of which it was forked in a write
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _forget(temporary: Path) -> None:
    """Delete a file that may have gone, with its folder, or lie on a disk that became read-only."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EROFS, errno.ESTALE, errno.EIO):
            raise cannot_write(temporary, error) from error


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Remembering:
    """A file that remembers why it could not be written: torch's writer answers with an error of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """As the file's own."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """As the file's own."""
        self._file.flush()


def save_tensors(value: object, path: Path) -> None:
    """torch.save into a file that is there whole or not at all. Raises CannotWrite."""
    import torch

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        remembering = Remembering(file)
        try:
            torch.save(value, remembering)
        except RuntimeError:
            if remembering.error is None:
                raise
            raise remembering.error from None
