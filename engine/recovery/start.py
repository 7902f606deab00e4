"""The first thing that an entry point does, before anything is imported that takes time.

Importing torch takes seconds. Whoever presses Ctrl-C in them gets one line and exit code 130 instead of a traceback
from somewhere in an import, or an abort from native code that an exception went through; and a process whose launcher
was killed in them does not train on alone.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

from engine.recovery.interrupt import follow_launcher


def begin() -> None:
    """Streams that take any file name, a Ctrl-C that is obeyed at once, and the launcher's end that is heard of."""
    for stream in (sys.stdout, sys.stderr):
        take_any_name(stream)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    follow_launcher()


def take_any_name(stream: TextIO | Any) -> None:
    """Let a stream escape what its encoding lacks: file names need not be text, and terminals need not be UTF-8."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once, without unwinding what is half imported."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"\nstopped before the run began\n")
    os._exit(128 + number)
