"""Waiting in a test for what other threads and processes do: until it is so, however busy the machine is."""

import subprocess
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

PATIENCE = 900.0
"""Seconds after which a thing counts as never coming. Imports of torch alone take minutes where thirty processes share
two cores; a test that passes does not wait so long."""
Found = TypeVar("Found")


def until(
    condition: Callable[[], Found],
    processes: Iterable[subprocess.Popen] = (),
    said: Callable[[], object] = lambda: "",
) -> Found:
    """Wait for `condition` to hold, and return what it gave.

    processes  have to be running until then
    said       what they said, for the message where one has ended
    """
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        ended = [one.returncode for one in processes if one.poll() is not None]
        assert not ended, f"ended with {ended} before it came to that: {said()}"
        assert time.monotonic() < deadline, f"it did not come to that within {PATIENCE:g} s"
        time.sleep(0.01)
    return found
