"""What a run costs the machine, sampled in a thread: GPU (NVML), torch's allocator, host.

monitor.jsonl holds a row {"kind": "start", ...} a session with what does not change, then {"kind": "sample", ...} rows;
their fields are listed at `Monitor.sample` and in nvml.py. A field that cannot be read is null. Only this
process and its GPU are watched: start it on the first rank.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from engine.monitor.nvml import GpuReader, GpuUnavailable, open_gpu
from engine.runs.monitor_summary import Totals
from engine.runs.records import RecordWriter

logger = logging.getLogger("hcr")


class Monitor:
    """Samples to `path` every `interval` seconds from `__enter__` (or `start`) to `__exit__` (or `stop`).

    path      monitor.jsonl; rows are appended, so a resumed run goes on in the same file
    device    the torch device that is trained on; None, or not a CUDA device: the host alone is sampled
    interval  seconds between samples, > 0
    nvml      stands in for the module `pynvml`

    Nothing that goes wrong while sampling reaches the training thread: it is said once through the logger `hcr`.
    Raises OSError on starting where `path` cannot be written, ValueError for an interval that is not positive.
    """

    def __init__(self, path: Path, device: Any = None, interval: float = 1.0, nvml: Any = None) -> None:
        if interval <= 0:
            raise ValueError(f"the monitor's interval must be above 0 seconds, not {interval}")
        self.path = Path(path)
        self.device = device
        self.interval = interval
        self.totals = Totals()
        self._nvml = nvml
        self._gpu: GpuReader | None = None
        self._process = psutil.Process()
        self._writer: RecordWriter | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures: set[str] = set()
        self._cpu_counted_from: float | None = None

    def start(self) -> Monitor:
        """Open the file and the GPU, and sample until `stop`."""
        self._writer = RecordWriter(self.path)
        self._gpu = self._open_gpu()
        self._record(self._facts())
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="hcr-monitor", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Take a last sample and close. A driver that hangs keeps the thread, not the caller, for more than 5 s."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=5.0)
        if self._thread.is_alive():
            logger.warning("the monitor's thread hangs in a reading; left behind")
        else:
            if self._gpu is not None:
                self._gpu.close()
            if self._writer is not None:
                self._writer.close()
        self._thread = None

    def __enter__(self) -> Monitor:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def sample(self) -> dict[str, Any]:
        """One row: `GpuReader.read`'s fields where there is a GPU, and

        time                    seconds since 1970
        torch_allocated_bytes   in tensors now; torch_reserved_bytes: held by torch's allocator;
                                torch_peak_bytes: most ever in tensors (since the trainer last reset it)
        process_rss_bytes       this process's resident memory, without worker processes
        process_cpu_percent     since the sample before (None where that is under 0.1 s ago); 100 is one core
        host_cpu_percent        the whole machine's, of all cores
        host_available_bytes    memory that the machine can still give
        sample_seconds          of processor time that this sample took; waiting for the interpreter lock or the
                                driver takes nothing from the training
        """
        began = time.thread_time()
        row: dict[str, Any] = {"kind": "sample", "time": round(time.time(), 3)}
        torch_figures = self._allocator()
        if self._gpu is not None:
            row |= self._gpu.read(at_least_bytes=torch_figures.get("torch_reserved_bytes", 0))
        row |= torch_figures
        with self._process.oneshot():
            row["process_rss_bytes"] = self._process.memory_info().rss
            row["process_cpu_percent"], row["host_cpu_percent"] = self._cpu_percents()
        row["host_available_bytes"] = psutil.virtual_memory().available
        row["sample_seconds"] = round(time.thread_time() - began, 6)
        return row

    def summary(self) -> dict[str, Any]:
        """`summarise` of the rows that this monitor took."""
        return self.totals.as_dict()

    def _open_gpu(self) -> GpuReader | None:
        if self.device is None or self.device.type != "cuda":
            logger.info("monitor: no GPU in this run, sampling the host")
            return None
        try:
            return open_gpu(self.device, self._nvml)
        except GpuUnavailable as error:
            logger.info("monitor: %s; sampling torch's allocator and the host", error)
            return None

    def _facts(self) -> dict[str, Any]:
        facts = {
            "kind": "start",
            "time": round(time.time(), 3),
            "interval": self.interval,
            "pid": os.getpid(),
            "host_cores": psutil.cpu_count(),
            "host_total_bytes": psutil.virtual_memory().total,
        }
        return facts | (self._gpu.facts() if self._gpu is not None else {})

    def _allocator(self) -> dict[str, int]:
        if self.device is None or self.device.type != "cuda":
            return {}
        import torch

        figures = torch.cuda.memory_stats(self.device)  # one call: each named getter would make its own
        return {
            "torch_allocated_bytes": figures.get("allocated_bytes.all.current", 0),
            "torch_reserved_bytes": figures.get("reserved_bytes.all.current", 0),
            "torch_peak_bytes": figures.get("allocated_bytes.all.peak", 0),
        }

    def _cpu_percents(self) -> tuple[float | None, float | None]:
        now, counted_from = time.monotonic(), self._cpu_counted_from
        if counted_from is not None and now - counted_from < 0.1:  # below that the kernel's clock ticks are too coarse
            return None, None
        self._cpu_counted_from = now
        percents = self._process.cpu_percent(), psutil.cpu_percent()
        return (None, None) if counted_from is None else percents  # psutil's first answer only starts its count

    def _loop(self) -> None:
        due = time.monotonic()
        stopping = False
        while not stopping:
            self._take()
            due = max(due + self.interval, time.monotonic())  # a late sample is not made up for
            stopping = self._stop.wait(due - time.monotonic())
        self._take()

    def _take(self) -> None:
        try:
            self._record(self.sample())
        except Exception as error:  # the boundary of the thread: training must not end for a reading
            text = f"{type(error).__name__}: {error}"
            if text not in self._failures:
                self._failures.add(text)
                logger.warning("monitor: a sample is lost (%s)", text)

    def _record(self, row: dict[str, Any]) -> None:
        self.totals.add(row)
        if self._writer is not None:
            self._writer.write(row)
