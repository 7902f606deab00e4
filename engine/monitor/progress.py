"""What a run says while it works: one bar an epoch on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time

import psutil
import torch
from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines where there is no terminal


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory_in_use(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


class EpochBar:
    """Progress of one epoch in images, with speed, loss, accuracy, memory and the time that the whole run still takes.

    title     text before the bar
    images    images in the epoch; `done` of them before this process started
    quiet     say nothing (every rank but the first)
    """

    def __init__(self, title: str, images: int, done: int = 0, quiet: bool = False) -> None:
        self._quiet = quiet
        self._title = title
        self._images = images
        self._done = done
        self._terminal = sys.stderr.isatty()
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=images,
            initial=done,
            desc=title,
            unit="img",
            disable=quiet or not self._terminal,
            leave=False,
            dynamic_ncols=True,
            mininterval=0.2,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt}{postfix}",
        )

    def advance(self, images: int) -> None:
        """Count `images` more as done."""
        self._done += images
        self._bar.update(images)

    def report(self, *, loss: float, accuracy: float, rate: float, memory: int, left: float) -> None:
        """Show the figures of the last log point: images/s, accuracy in [0, 1], bytes, seconds left of the run."""
        figures = f"{rate:.0f} img/s, loss {loss:.3f}, acc {accuracy:.1%}, {memory / 2**30:.1f} GiB, {clock(left)} left"
        self._bar.set_postfix_str(figures, refresh=False)
        due = time.monotonic() - self._last_line > LINE_SECONDS
        if due and not self._terminal and not self._quiet:
            self._last_line = time.monotonic()
            print(f"{self._title} {self._done / max(1, self._images):4.0%}  {figures}", flush=True)

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
