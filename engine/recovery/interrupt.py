"""Ctrl-C, SIGTERM and SIGHUP: finish the step, save, leave with 128 + the signal's number."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LAUNCHERS = ("python", "accelerate", "torchrun", "deepspeed", "sh", "bash", "dash", "zsh")
"""How the names of launchers, and of shells around them, begin."""


class Interrupt:
    """Remembers the first stop signal; a second one stops at once.

    Use as a context manager in the main thread: the handlers that were there come back at the end. A signal that the
    process was started to ignore (nohup) stays ignored.

    No second one is what comes of the first by another way: a terminal that is closed sends SIGHUP, and so does the
    shell in it; and Ctrl-C or SIGHUP ends `accelerate launch` at once, of which its process hears by SIGTERM.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, announce: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._announce = announce
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM; 0 without a signal."""
        return 128 + self.received if self.received is not None else 0

    def __enter__(self) -> Interrupt:
        for number in self.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        by_another_way = number == signal.SIGHUP or (_launcher_gone() and number == signal.SIGTERM)
        if self.received is not None:
            if by_another_way:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        if self._announce:
            text = f"\n{self.received.name}: finishing this step, then saving (again to stop at once)\n"
            with suppress(OSError):  # not by print: it may be what this signal interrupted, or the terminal is closed
                os.write(2, text.encode())


_followed: list[int] = []
"""The launcher's process number, until it has gone."""


def _launcher_gone() -> bool:
    """Whether the launcher has gone since this was asked last."""
    gone = bool(_followed) and os.getppid() != _followed[0]
    if gone:
        _followed.clear()
    return gone


def follow_launcher() -> None:
    """Receive SIGTERM when the launcher dies, and end at once where it has died already.

    `accelerate launch` passes no signal on, and no launcher can when it is killed: it would leave this process running.
    Does nothing without a launcher, nor off Linux.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if not launched or sys.platform != "linux":
        return
    parent = os.getppid()
    _followed.append(parent)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent or orphaned(parent):
        print("the launcher has gone; this process ends with it", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)


def end_with_parent() -> Callable[[], None] | None:
    """For a new process: it is sent SIGTERM, and saves, when this one is killed. None off Linux."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec only the call is made
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def orphaned(parent: int) -> bool:
    """Whether `parent` is what the system gives a process whose own parent died: process 1, and no launcher.

    In a container the launcher itself may be process 1; launchers are Python programs, or started by a shell.
    """
    if parent != 1:
        return False
    try:
        name = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")[0].rpartition(b"/")[2].decode(errors="replace")
    except OSError:
        return False
    return not name.lstrip("-").startswith(LAUNCHERS)
