"""Loaded by `import torch` (entry point "torch.backends") in every process that `run.py` starts."""

from __future__ import annotations

import atexit
import collections
import ctypes
import json
import os
import sys
import traceback
import warnings
from pathlib import Path

COUNTERS = (
    "stream_waits",
    "device_waits",
    "event_waits",
    "blocking_copies",
    "to_device",
    "to_host",
    "on_device",
    "refused_kernels",
    "allocations",
    "refused_allocations",
    "graph_launches",
)
"""In the order of runtime.cpp's `Counters`."""
PEAKS = ("allocated_bytes", "reserved_bytes", "active_bytes", "requested_bytes")


def load() -> None:
    """Put the operators in place."""
    import torch

    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0" or "libcudart" not in os.environ.get("LD_PRELOAD", ""):
        return
    torch.ops.load_library(str(Path(os.environ["EMULATED_GPU_LIBRARIES"]) / "liboperators.so"))
    if os.environ.get("EMULATED_GPU_SKIP_ABOVE"):
        import torch._meta_registrations  # shape functions in Python: a convolution has no others
    sys.modules.setdefault("nvidia.dali", None)  # its CUDA runtime is its own: importing it fails as if not installed
    if os.environ.get("EMULATED_GPU_COMPILE", "traced") == "traced":
        _compiled_graphs_as_traced()
    _profiles_of_the_host()
    if os.environ.get("EMULATED_GPU_BACKEND", "gloo") == "gloo":
        _collectives_by_gloo()
    if os.environ.get("EMULATED_GPU_SYNCS"):
        _watch_waits(Path(os.environ["EMULATED_GPU_SYNCS"]))
    if os.environ.get("EMULATED_GPU_REPORT"):
        atexit.register(_report, Path(os.environ["EMULATED_GPU_REPORT"]))


def counters() -> dict[str, int]:
    """What the process has asked of the emulated runtime so far."""
    library = ctypes.CDLL("libcudart.so.13")
    library.emulated_counters.restype = ctypes.POINTER(ctypes.c_long * len(COUNTERS))
    return dict(zip(COUNTERS, library.emulated_counters().contents, strict=True))


def _compiled_graphs_as_traced() -> None:
    """Inductor's kernels cannot run: what Dynamo and AOTAutograd make, min-cut partitioner included, runs as it is."""
    import torch

    def compile_graph(wrapper, module, inputs):
        from torch._dynamo.backends.debugging import aot_eager_decomp_partition

        return aot_eager_decomp_partition(module, inputs)

    torch._TorchCompileInductorWrapper.__call__ = compile_graph


def _profiles_of_the_host() -> None:
    """CUPTI needs a driver: torch's profiler records what the host did."""
    import torch.profiler

    original = torch.profiler.profile.__init__

    def without_cupti(self, *, activities=None, **settings):
        kept = [one for one in activities or () if one != torch.profiler.ProfilerActivity.CUDA]
        original(self, activities=kept or [torch.profiler.ProfilerActivity.CPU], **settings)

    torch.profiler.profile.__init__ = without_cupti


def _collectives_by_gloo() -> None:
    """NCCL needs kernels: process groups that ask for it get gloo, which copies through the host."""
    import torch.distributed as dist

    if not dist.is_available():
        return
    original, new_group = dist.init_process_group, dist.new_group

    def chosen(backend: str | None) -> str:
        return "cpu:gloo,cuda:gloo" if backend is None or "nccl" in str(backend) else backend

    def init_process_group(backend=None, *args, **kwargs):
        kwargs.pop("device_id", None)
        return original(chosen(backend), *args, **kwargs)

    def other_group(ranks=None, timeout=None, backend=None, *args, **kwargs):
        return new_group(ranks, timeout, None if "nccl" in str(backend) else backend, *args, **kwargs)

    gather = dist.all_gather_into_tensor

    def all_gather_into_tensor(output_tensor, input_tensor, *args, **kwargs):  # gloo minds the shapes, NCCL does not
        return gather(output_tensor.view(-1), input_tensor.reshape(-1), *args, **kwargs)

    dist.all_gather_into_tensor = dist.distributed_c10d.all_gather_into_tensor = all_gather_into_tensor
    dist.init_process_group = dist.distributed_c10d.init_process_group = init_process_group
    dist.new_group = dist.distributed_c10d.new_group = other_group


def _own(path: Path) -> Path:
    """This process's file."""
    return path.with_name(f"{path.name}.{os.getpid()}.json")


def _watch_waits(path: Path) -> None:
    """Write where the host waits for the device: PyTorch's own warnings, with the place of the caller, counted."""
    import torch

    places: collections.Counter[str] = collections.Counter()
    shown = warnings.showwarning

    def note(message, category, filename, lineno, file=None, line=None):
        if "synchronizing CUDA operation" not in str(message):
            return shown(message, category, filename, lineno, file, line)
        stack = [f for f in traceback.extract_stack()[:-1] if "/site-packages/" not in f.filename]
        own = [f for f in stack if "emulated_gpu" not in f.filename and "warnings.py" not in f.filename]
        places[" < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(own[-3:]))] += 1
        return None

    def start() -> None:
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")

    original = torch.cuda._lazy_init

    def lazy_init() -> None:
        first = not torch.cuda.is_initialized()
        original()
        if first and torch.cuda.is_initialized():
            start()

    torch.cuda._lazy_init = lazy_init
    atexit.register(lambda: _own(path).write_text(json.dumps(places.most_common(), indent=1)))


def _report(path: Path) -> None:
    """Counters and the allocator's peaks of this process, a file a process."""
    import torch

    if not torch.cuda.is_initialized():
        return
    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.memory_stats(index)
        peaks = {key: found.get(f"{key}.all.peak") for key in PEAKS}
        devices.append(peaks | {"out_of_memory": found.get("num_ooms")})
    _own(path).write_text(json.dumps({"counters": counters(), "devices": devices}, indent=1))
