"""Fetching a published data set once, by torchvision's downloader, without hanging where there is no network."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.data.sources.source import DataError

logger = logging.getLogger("hcr")

TIMEOUT = 15.0
"""Seconds without an answer after which a connection counts as dead."""


def fetch_once(
    name: str,
    root: Path,
    expected: str,
    fetch: Callable[[Path], None],
    missing: Callable[[], list[str]],
    download: bool,
) -> None:
    """Run `fetch(root)` unless nothing is missing; of several processes one fetches and the others wait for it.

    expected  what should be there, for the message

    Raises DataError, saying what was looked for and why it could not be fetched.
    """
    wanted = f"{name} was looked for at {root} and is not there; expected {expected}"
    if not download:
        raise DataError(f"{wanted}; put it there, name its folder with --data.root, or allow --data.download")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{name}.lock"):
            if not missing():
                return
            logger.info("fetching %s to %s", name, root)
            with _timeout(TIMEOUT):
                fetch(root)
    except (OSError, RuntimeError, ImportError) as error:  # urllib's errors are OSErrors, torchvision's RuntimeErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{wanted}; it cannot be fetched either ({reason}); put it there, or name its folder with --data.root"
        ) from None
    if missing():
        raise DataError(f"{wanted}; after fetching it, {', '.join(missing())} is still missing")


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """A limit for every connection made meanwhile: torchvision's downloader sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` exclusively among the processes of this machine; freed when a process dies."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
