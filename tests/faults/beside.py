"""Faults of the thread that writes a checkpoint beside training: at any call that it makes, with training ahead of it.

A write takes milliseconds here, so that a moment of the whole run seldom lies within one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.trial import Bench, Child, Wrong

CHECKPOINTS = 3
"""That an undisturbed run writes at the least."""


def in_the_write(number: int, at: int, strike: Callable[[], None], done: Callable[[int], object] = int) -> None:
    """Lets `strike` happen in the thread that writes this process's n-th checkpoint.

    at    at which of the calls, Python's and C's, that the thread makes in this write, or at its end; 0 is none
    done  is told how many there were
    """
    from engine.recovery.checkpoint import Checkpointer

    writes, real = [0], Checkpointer._write

    def write(self: Checkpointer, *more: object) -> None:
        writes[0] += 1
        calls = 0

        def called(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            if event in ("call", "c_call"):
                calls += 1
                if calls == at:
                    sys.setprofile(None)
                    strike()

        if writes[0] == number:
            sys.setprofile(called)
        try:
            real(self, *more)
        finally:
            sys.setprofile(None)
        if writes[0] == number:
            done(calls)
            if calls < at:
                strike()  # no two writes are alike: this one has fewer than the one that was counted

    Checkpointer._write = write  # type: ignore[method-assign]


def calls_of_a_write(bench: Bench) -> int:
    """Of an undisturbed run, counted once."""
    noted = bench.folder / "calls"
    if not noted.exists():
        before = lambda: in_the_write(1, 0, lambda: None, lambda calls: noted.write_text(str(calls)))  # noqa: E731
        code, said = bench.start(bench.folder / "counted", before=before).wait()
        if code or not noted.exists():
            raise Wrong(f"the run whose calls are counted ends with {code}: {said[-300:]}")
    return int(noted.read_text())


def struck_in_a_write(bench: Bench, chance: random.Random, run: Path, number: signal.Signals) -> tuple[Child, Path]:
    """A run that gets a signal within a write; up to a third of its length after the write stood still at that call.

    Returns it, and the file that is there once the signal was sent.
    """
    struck = bench.folder / "struck"
    struck.unlink(missing_ok=True)
    at, ahead = chance.randrange(1, calls_of_a_write(bench) + 1), chance.uniform(0, bench.seconds / 3)

    def strike() -> None:
        time.sleep(ahead)
        struck.touch()
        os.kill(os.getpid(), number)

    which = chance.randrange(1, CHECKPOINTS + 1)
    before = lambda: in_the_write(which, at, strike)  # noqa: E731
    return bench.start(run, before=before), struck
