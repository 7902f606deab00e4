"""The first thing that an entry point does, before anything is imported that takes time.

Importing torch takes seconds. Whoever presses Ctrl-C in them gets one line and exit code 130 instead of a traceback
from somewhere in an import, or an abort from native code that an exception went through; and a process whose launcher
was killed in them does not train on alone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from engine.recovery.interrupt import follow_launcher
from engine.recovery.streams import go_on_unheard, trains, unheard


def begin(unheard: bool = False) -> None:
    """Streams that take any file name, a Ctrl-C that is obeyed at once, and the launcher's end that is heard of.

    unheard  go on where nothing can be printed any more (engine.recovery.streams)
    """
    for stream in (sys.stdout, sys.stderr):
        take_any_name(stream)
    if unheard:
        go_on_unheard()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    follow_launcher()


def in_words(main: Callable[[], int]) -> int:
    """Run an entry point; memory that is out, disks that are full, and files that may not be looked at, are one
    sentence and an exit code.

    Whoever closes standard output, as `| head` does, has seen enough: that is no error to be told.

    They come from anywhere: an import that cannot be mapped, a thread that cannot be started, torch's allocator.
    """
    try:
        code = main()
        if (cause := unheard()) is not None and not isinstance(cause, BrokenPipeError):
            why = cannot_be_written(cause) or cause.strerror
            print(f"note: standard output was not written to its end: {why}", file=sys.stderr, flush=True)
        return code
    except BrokenPipeError:
        if _somebody_reads(1):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer is written at the exit
        return 128 + signal.SIGPIPE
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if is_memory(error):
            print(f"error: out of host memory ({first_line(error)}); {advice()}", file=sys.stderr, flush=True)
            return 1
        if on_device(error):
            print(f"error: out of device memory ({first_line(error)}); use a smaller --batch-size", file=sys.stderr)
            return 1
        if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
            return 2
        if (told := cannot_be_written(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr, flush=True)
        return 1


def _somebody_reads(number: int) -> bool:
    """Whether what is written to a file descriptor still has a reader."""
    asked = select.poll()
    asked.register(number, 0)
    return not any(events & (select.POLLERR | select.POLLHUP) for _, events in asked.poll(0))


REFUSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENOTDIR)
"""What a file system answers to names that were given, and no program can mend."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What it answers to a write, whoever makes it."""
SAID = (
    *("can't allocate memory", "cannot allocate memory", "failed to map segment", "can't start new thread"),
    "std::bad_alloc",
)
"""How memory that is out is told where there is no exception of its own: by torch, the loader and the interpreter."""


def is_memory(error: BaseException) -> bool:
    """Whether host memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(words in str(error).lower() for words in SAID)


def on_device(error: BaseException) -> bool:
    """Whether a GPU's memory ran out; nobody but torch says so."""
    if not hasattr(sys.modules.get("torch"), "OutOfMemoryError"):  # not loaded, or its import has failed
        return False
    from engine.step.device_memory.out_of_memory import out_of_memory

    return out_of_memory(error)


def cannot_be_written(error: BaseException) -> str | None:
    """What to say of an error of the disk that was written to; None for any other."""
    from engine.runs.door import CannotWrite, reason

    if isinstance(error, CannotWrite):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    if error.filename:
        return f"{error.filename}: {reason(Path(error.filename).absolute(), error)}"
    return "the disk is full" if error.errno == errno.ENOSPC else reason(Path.cwd(), error)  # of which nothing is known


def first_line(error: BaseException) -> str:
    """What it says of itself, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def advice() -> str:
    """What would do: a limit that was set, or less work at once."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        return f"this process may use {limit / 2**30:.1f} GiB of addresses (ulimit -v), and torch alone maps several"
    return "close other programs, or use a smaller --batch-size, --data.prefetch or --data.workers"


def take_any_name(stream: TextIO | Any) -> None:
    """Let a stream escape what its encoding lacks: file names need not be text, and terminals need not be UTF-8."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once, without unwinding what is half imported; what is half written is taken back."""
    if (door := sys.modules.get("engine.runs.door")) is not None:
        door.forget_drafts()
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # of a terminal that was closed
            os.write(2, b"\nstopped before the run began\n" if trains() else b"\nstopped\n")
    os._exit(128 + number)
