"""Where a step goes: some steps under torch's profiler, a trace for chrome://tracing or perfetto.dev, and ten lines."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from engine.runs.text_table import text_table

logger = logging.getLogger("hcr")

SKIPPED = 5
"""Steps before the recorded ones: compiling, kernels loaded and chosen, the allocator filled."""
RECORDED = 10
PARTS = ("data wait", "forward", "backward", "optimizer")
PREFIX = "hcr: "
LONGEST = 60
"""Letters of a kernel's name that are shown: templates have hundreds."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""What the profiler calls a host that waits for the GPU."""


class Unprofiled:
    """A run that is not recorded: costs nothing."""

    def span(self, part: str) -> AbstractContextManager:
        """Part of a step, by its name in PARTS."""
        return nullcontext()

    def step_done(self, images: int) -> None:
        """One step has ended."""

    def close(self) -> None:
        """The run has ended."""


class StepProfile(Unprofiled):
    """Records RECORDED steps after SKIPPED, or what a shorter run has of them, into `folder`.

    folder/trace.json     every operator and kernel on a time line
    folder/summary.txt    ten lines, which are also printed
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self._profiler: Any = None
        self._done = self._steps = self._images = 0
        self._began = 0.0

    def span(self, part: str) -> AbstractContextManager:
        """A range of the trace while recording."""
        return torch.profiler.record_function(PREFIX + part) if self._profiler is not None else nullcontext()

    def step_done(self, images: int) -> None:
        """Begin to record after SKIPPED steps, end after RECORDED more."""
        self._done += 1
        if self._profiler is not None:
            self._steps += 1
            self._images += images
            if self._steps == RECORDED:
                self._finish()
        elif self._done == SKIPPED:
            self._start()

    def close(self) -> None:
        """Write what was recorded; a run of fewer than SKIPPED steps says that nothing was."""
        if self._profiler is not None and self._steps:
            self._finish()
        elif not self._steps:
            logger.info("--profile: the run ended before step %d, nothing was recorded", SKIPPED + 1)

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.synchronize(self.device)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self._began = time.perf_counter()

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._began
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / "trace.json"
        profiler.export_chrome_trace(str(trace))
        text = summary(profiler.events(), seconds, self._steps, self._images)
        (self.folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
        logger.info(
            "%s\ntrace %s (chrome://tracing, perfetto.dev); the machine over time: plots/activity.png", text, trace
        )


def summary(events: Iterable[Any], seconds: float, steps: int, images: int) -> str:
    """Ten lines on `steps` steps that took `seconds`, from the profiler's events."""
    events = list(events)
    wall = 1e3 * seconds / steps
    host = {part: _milliseconds(events, PREFIX + part) / steps for part in PARTS}
    host["between"] = max(0.0, wall - sum(host.values()))
    kernels = sorted((event.time_range.start, event.time_range.end) for event in events if _on_gpu(event))
    rows = [[part, f"{time:.2f}", f"{100 * time / wall:.1f} %"] for part, time in host.items()]
    if kernels:
        busy, gap = (value / 1e3 for value in busy_and_longest_gap(kernels))
        rows.append(["GPU computes", f"{busy / steps:.2f}", f"{100 * busy / steps / wall:.1f} %"])
        idle = max(0.0, wall - busy / steps)
        rows.append(["GPU waits for the host", f"{idle:.2f}", f"{100 * idle / wall:.1f} %; longest gap {gap:.2f} ms"])
    else:
        rows.append(["GPU", "", "none: the host does the work"])
        rows.append(["in operators", f"{_operators(events) / steps:.2f}", "the rest is Python"])
    waits = f", the host waits {sum(event.name in WAITS for event in events) / steps:.1f} times a step"
    costly = ", ".join(f"{name[:LONGEST]} {time / steps:.2f} ms" for name, time in costliest(events, bool(kernels)))
    head = f"{steps} steps of {wall:.2f} ms, {images / seconds:.0f} images/s{waits if kernels else ''}"
    return "\n".join([head, text_table(["the host is in", "ms", "of a step"], rows), f"costliest: {costly}"])


def _on_gpu(event: Any) -> bool:
    """Whether the GPU did this. Ranges that code marks (ours, an optimizer's, torch.compile's) have a shadow there."""
    return str(event.device_type) == "DeviceType.CUDA" and not event.is_user_annotation


def _milliseconds(events: list[Any], name: str) -> float:
    spans = [event for event in events if event.name == name and str(event.device_type) == "DeviceType.CPU"]
    return sum(event.time_range.end - event.time_range.start for event in spans) / 1e3


def _operators(events: list[Any]) -> float:
    return sum(event.self_cpu_time_total for event in events if event.name.startswith("aten::")) / 1e3


def busy_and_longest_gap(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """(length of the union, longest gap within it) of sorted intervals, in their unit."""
    busy, gap = 0.0, 0.0
    start, end = intervals[0]
    for begins, ends in intervals[1:]:
        if begins > end:
            busy, gap = busy + end - start, max(gap, begins - end)
            start, end = begins, ends
        end = max(end, ends)
    return busy + end - start, gap


def costliest(events: list[Any], on_gpu: bool, count: int = 3) -> list[tuple[str, float]]:
    """What took the most time, in milliseconds over all steps: kernels and copies on a GPU, else operators by the time
    of their own. A compiled kernel belongs to no operator."""
    totals: dict[str, float] = defaultdict(float)
    for event in events:
        if on_gpu and _on_gpu(event):
            totals[event.name] += (event.time_range.end - event.time_range.start) / 1e3
        elif not on_gpu and event.name.startswith("aten::"):
            totals[event.name] += event.self_cpu_time_total / 1e3
    return sorted(totals.items(), key=lambda item: -item[1])[:count]
