"""Which images are being decoded, kept where the end of the process leaves it however it comes.

A decoder that crashes in native code takes the process with it and names no file. So the loader notes what it hands to
the decoder in `.decoding-RANK` of the run folder, and Python's faulthandler writes the crash into `.crash-RANK`, which
stays empty in every other end. The next start of that run reads both (engine.train.decoder_crash).
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from engine.data.sources.source import DataError

CRASH, DECODING = ".crash-", ".decoding-"
FATAL = "Fatal Python error: "
"""How faulthandler begins."""
LENGTH = 16
"""Digits in front of the list that say how many bytes it has."""


class DecoderDied(DataError):
    """A process that decodes for this one has crashed."""


@dataclass(frozen=True)
class Crash:
    """What a process left that crashed in native code."""

    rank: int
    signal: str
    """In faulthandler's words, as "Segmentation fault"."""
    decoding: dict[str, list[str]] = field(default_factory=dict)
    """Names of the images that were with the decoder, by split."""


class DecodingWatch:
    """Notes what one rank decodes in `folder` until `close`. A disk that is full costs the notes, not the run."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._crash, self._decoding = folder / f"{CRASH}{rank}", folder / f"{DECODING}{rank}"
        self._noted: dict[str, list[str]] = {}
        self._file: IO[bytes] | None = None
        self._list = -1
        self._lock = threading.Lock()  # training's batches are prepared while an evaluation's are
        with suppress(OSError):  # a host without the folder, or without room in it
            self._file = self._crash.open("wb")
            self._list = os.open(self._decoding, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            faulthandler.enable(self._file, all_threads=False)

    def note(self, split: str, names: list[str]) -> None:
        """Images of a split that are with the decoder from now on, in place of those noted before."""
        with self._lock, suppress(OSError):
            if self._list < 0:
                return
            self._noted[split] = names
            text = json.dumps(self._noted).encode()
            os.pwrite(self._list, f"{len(text):{LENGTH}d}".encode() + text, 0)

    def worker_died(self, signal: str) -> None:
        """Write down that a process which decodes for this one has crashed: torch's workers keep faulthandler out."""
        if self._file is not None:
            with suppress(OSError):
                os.write(self._file.fileno(), f"{FATAL}{signal}\n".encode())

    def close(self) -> None:
        """An end in words: nothing is left, unless a worker process crashed; harmless when repeated."""
        if self._file is None:
            return
        faulthandler.disable()
        crashed = os.fstat(self._file.fileno()).st_size > 0
        self._file.close()
        self._file = None
        with self._lock:
            if self._list >= 0:
                os.close(self._list)
                self._list = -1
        for path in () if crashed else (self._crash, self._decoding):
            with suppress(OSError):
                path.unlink()


def crashes_in(folder: Path) -> list[Crash]:
    """What processes of an earlier start left that crashed."""
    found = []
    for path in sorted(folder.glob(f"{CRASH}*")):
        text = path.read_bytes()[:4096].decode("utf-8", "replace")
        if text.startswith(FATAL):
            rank = int(path.name.removeprefix(CRASH))
            signal = text.splitlines()[0].removeprefix(FATAL)
            found.append(Crash(rank, signal, _noted(folder / f"{DECODING}{rank}")))
    return found


def forget_crashes(folder: Path) -> None:
    """Delete what earlier processes left, for the owner of the folder."""
    for path in [*folder.glob(f"{CRASH}*"), *folder.glob(f"{DECODING}*")]:
        with suppress(OSError):
            path.unlink()


def _noted(path: Path) -> dict[str, list[str]]:
    """What `note` wrote last; nothing where that is torn."""
    try:
        data = path.read_bytes()
        found = json.loads(data[LENGTH : LENGTH + int(data[:LENGTH])])
        return {str(split): [str(name) for name in names] for split, names in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
