"""Ctrl-C, SIGTERM and SIGHUP: finish the step, save, leave with 128 + the signal's number."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupt:
    """Remembers the first stop signal; a second one stops at once.

    Use as a context manager in the main thread: the handlers that were there come back at the end. A signal that the
    process was started to ignore (nohup) stays ignored.
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
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        if self._announce:
            print(f"\n{self.received.name}: finishing this step, then saving (again to stop at once)", file=sys.stderr)


def follow_launcher() -> None:
    """Receive SIGTERM when `accelerate launch` dies: it passes no signal on, and would leave this process running.

    Does nothing outside its single-process launcher (torchrun's agent passes signals on itself), nor off Linux.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
