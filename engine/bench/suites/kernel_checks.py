"""Two rows of the `kernels` suite that are no rates: the same bits twice, and no access outside the tensors.

python -m engine.bench.suites.kernel_checks --device cuda      every operator once; what compute-sanitizer watches
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.rows import Row
from engine.runs.provenance import ROOT

SANITIZER = "compute-sanitizer"
MOST_SECONDS = 180.0
SHAPE = (3, 40, 19, 17)
"""Odd sides, so that every kernel's edges are masked; more tiles than walkers, so that sums have an order."""


def exercise(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Iterator[tuple[str, Tensor]]:
    """Every operator forward and backward on random numbers from one seed: each result by name."""
    for dtype in dtypes:
        for name, operation, shapes in _operations():
            generator = torch.Generator().manual_seed(0)
            x, *others = (torch.randn(shape, generator=generator) for shape in (SHAPE, *shapes))
            images = x.to(device, dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
            vectors = [torch.rand(SHAPE[1], generator=generator).to(device).requires_grad_() for _ in range(3)]
            leaves = [tensor.to(device).requires_grad_() for tensor in others]
            outputs = operation(images, *leaves, kernels.Prologue(*vectors, "silu"))
            outputs = [outputs[0], *outputs[1][:2]] if isinstance(outputs, tuple) else [outputs]
            gradients = torch.autograd.grad(outputs, [images, *leaves, *vectors], [o.detach() for o in outputs])
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            for place, tensor in enumerate((*outputs, *gradients)):
                yield f"{label} {place}", tensor.detach()


def _operations() -> list[tuple[str, Any, list[tuple[int, ...]]]]:
    """Name, operator over (images, tensors of these shapes, prologue), shapes."""
    channels = SHAPE[1]

    def depthwise(stride: int, x: Tensor, weight: Tensor, prologue: kernels.Prologue) -> Any:
        return kernels.depthwise_conv2d(x, weight, stride, weight.shape[-1] // 2, prologue=prologue, statistics=True)

    def pointwise(groups: int, shuffle: int, x: Tensor, weight: Tensor, prologue: kernels.Prologue) -> Any:
        return kernels.pointwise_conv2d(x, weight, groups, prologue=prologue, statistics=True, shuffle=shuffle)

    def excited(x: Tensor, *tensors: Any) -> Any:
        return kernels.excited_pointwise_conv2d(x, *tensors[:-1], prologue=tensors[-1], statistics=True)

    def excite(x: Tensor, *tensors: Any) -> Tensor:
        return kernels.squeeze_excite(x, *tensors[:-1], prologue=tensors[-1])

    def shuffle(x: Tensor, prologue: kernels.Prologue) -> Tensor:
        return kernels.channel_shuffle(kernels.norm_act(kernels.channel_shuffle(x, 4), prologue, x), 2)

    def library(x: Tensor, weight: Tensor, prologue: kernels.Prologue) -> Any:
        return kernels.conv2d(x, weight, 2, 1, prologue=prologue, statistics=True)

    layers = [(10, channels), (10,), (channels, 10), (channels,)]
    return [
        *(
            (f"depthwise {size}x{size} stride {stride}", partial(depthwise, stride), [(channels, 1, size, size)])
            for size, stride in ((3, 1), (3, 2), (5, 2), (7, 1))
        ),
        ("pointwise", partial(pointwise, 1, 1), [(72, channels, 1, 1)]),
        ("pointwise wide", partial(pointwise, 1, 1), [(264, channels, 1, 1)]),
        ("pointwise in 2 shuffled groups", partial(pointwise, 2, 2), [(72, channels // 2, 1, 1)]),
        ("excited pointwise", excited, [(72, channels, 1, 1), *layers]),
        ("squeeze-excite", excite, layers),
        ("shuffle and norm_act", shuffle, []),
        ("library convolution", library, [(24, channels, 3, 3)]),
    ]


def dtypes_of(device: torch.device) -> tuple[torch.dtype, ...]:
    """fp32 and the 16-bit dtype that the device trains in."""
    bf16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.float32, torch.bfloat16 if bf16 else torch.float16


def same_bits(device: torch.device, deadline: float = float("inf")) -> dict[str, Any]:
    """Run everything twice; which results differ in any bit."""
    first, second = ({name: t.cpu() for name, t in exercise(device, dtypes_of(device))} for _ in range(2))
    differing = [name for name, one in first.items() if not torch.equal(bits(one), bits(second[name]))]
    told = f"{len(differing)} of {len(first)} results differ" if differing else f"{len(first)} results twice, same bits"
    return {"results": len(first), "differing": differing, "summary": told}


def bits(values: Tensor) -> Tensor:
    """As integers: 0 and -0 differ, a NaN equals itself."""
    return values.view(torch.int16 if values.dtype.itemsize == 2 else torch.int32)


def sanitizer() -> str:
    """The path of compute-sanitizer: on PATH, in CUDA_HOME or CUDA_PATH, under /usr/local/cuda, or in a package.

    Raises NotAvailable where it is in none of them.
    """
    found = shutil.which(SANITIZER)
    if found:
        return found
    folders = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders.append(Path("/usr/local/cuda"))
    places = [folder / part / SANITIZER for folder in folders for part in ("bin", "compute-sanitizer")]
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages.submodule_search_locations or []) if packages else []:
        places += sorted(Path(folder).glob(f"**/{SANITIZER}"))
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    raise NotAvailable(f"{SANITIZER} is not on PATH, in CUDA_HOME or in a package (it comes with the CUDA toolkit)")


def memory_check(device: torch.device, deadline: float = float("inf")) -> dict[str, Any]:
    """Run everything under compute-sanitizer's memcheck, as a program of its own.

    Raises NotAvailable without the tool or the time for it, RuntimeError where the program or an access fails.
    """
    tool = sanitizer()
    seconds = min(MOST_SECONDS, deadline - time.monotonic())
    if seconds <= 0:
        raise NotAvailable("no time left")
    program = [sys.executable, "-m", "engine.bench.suites.kernel_checks", "--device", device.type]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "86", *program]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"not done in {seconds:.0f} s") from None
    told = re.findall(r"ERROR SUMMARY: (\d+) error", done.stdout + done.stderr)
    if done.returncode or not told or int(told[-1]):
        last = (done.stdout + done.stderr).strip().splitlines()[-3:]
        raise RuntimeError(f"memcheck ended with {done.returncode}: {' | '.join(last)}")
    return {"errors": 0, "tool": Path(tool).name, "summary": "every operator under memcheck, 0 errors"}


def rows(options: Options, device: torch.device) -> list[Row]:
    """Both; memcheck watches a GPU's memory, so that a run on a CPU has nothing for it."""

    def check(deadline: float) -> dict[str, Any]:
        if device.type != "cuda":
            raise NotAvailable("memcheck watches a GPU, and this run is on the CPU")
        return memory_check(device, deadline)

    settings = {"shape": list(SHAPE), "device": device.type}
    return [
        Row("determinism", settings, partial(same_bits, device), 60.0 if device.type == "cuda" else 3.0, paced=False),
        Row("memcheck", settings, check, 60.0, paced=False),
    ]


def main() -> None:
    """Run every operator once on the device."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    device = torch.device(parser.parse_args().device)
    count = sum(1 for _ in exercise(device, dtypes_of(device)))
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{count} results")


if __name__ == "__main__":
    main()
