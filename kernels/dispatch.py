"""Who convolves: this package's kernel or the library's, by what was measured on this GPU.

The table is `profiles/<gpu>/kernels.json`, written by the GPU report: for each (op, shape, dtype) the seconds of
one forward and backward through the kernel and through what would be taken in its place, the same operator with the
library's convolution. No measurement, no kernel: belief about speed has no place here. A table of another GPU, Triton
or schema, or a torn one, is not used, and that is said.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Fused = Literal["auto", "on", "off"]
Route = Literal["aten", "depthwise", "pointwise"]

logger = logging.getLogger("hcr")

SCHEMA = 2
"""Of the tables that are read (engine.bench.instrument.record)."""
PROFILES = Path(__file__).resolve().parent.parent / "profiles"
NEVER_BELOW = 0.95
"""The kernel is taken where it reaches this share of the library's speed: its fusions then come free."""


def gpu_key(name: str) -> str:
    """A GPU's folder in profiles/: "NVIDIA H100 80GB HBM3" is h100-80gb-hbm3."""
    return name.lower().removeprefix("nvidia ").replace(" ", "-")


def layer_key(
    op: str, channels: int, outputs: int, height: int, width: int, size: int, stride: int, groups: int, dtype: str
) -> str:
    """The table's key. The batch is not in it: a layer that fills the GPU at 128 images is bound by the same thing."""
    return f"{op} {channels}>{outputs} {height}x{width} k{size} s{stride} g{groups} {dtype}"


def measured(gpu: str, folder: Path = PROFILES) -> dict[str, float]:
    """Library seconds over kernel seconds by `layer_key` on that GPU; empty where nothing was measured."""
    return speedups(_figures(gpu, folder))


def networks_measured(gpu: str, folder: Path = PROFILES) -> dict[str, float]:
    """Seconds of a compiled training step ÷ those of the step that auto takes with this table, by network."""
    rows = _figures(gpu, folder)
    return {row["arch"]: row["inductor_over_auto"] for row in rows if row.get("arch") and "inductor_over_auto" in row}


def _figures(gpu: str, folder: Path) -> list[dict[str, Any]]:
    """Of the report's rows that were measured on that GPU; none where it has no report."""
    path = folder / gpu / "kernels.json"
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return []
    return _read(path, gpu, changed)


@functools.lru_cache(maxsize=8)
def _read(path: Path, gpu: str, changed: int) -> list[dict[str, Any]]:
    """`_figures` of a file as it was last changed: one that this process writes is read again."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = list(document["rows"].values())
        wrong = unlike(document, gpu)
        figures = [row["figures"] for row in rows if row.get("status") == "measured"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is no table of measurements (%s): not used", path, type(error).__name__)
        return []
    if wrong:
        logger.warning("%s %s: not used", path, wrong)
        return []
    return figures


def unlike(document: dict[str, Any], gpu: str) -> str:
    """Why a table does not hold here, as the end of a sentence; empty where it does."""
    if document.get("schema") != SCHEMA:
        return f"is of schema {document.get('schema')}, this program reads {SCHEMA}"
    if (other := document.get("machine", {}).get("key")) != gpu:
        return f"was measured on {other}, here is {gpu}"
    try:
        here = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "is of Triton's kernels, and there is no Triton"
    if (other := document.get("versions", {}).get("triton")) != here:
        return f"was measured with Triton {other or 'of an unknown version'}, here is {here}"
    return ""


def speedups(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """From the report's rows, those with both times: of the same operator with the library's convolution, which is the
    alternative that is taken, and in rows without that of the compiled library's layer."""
    found = {}
    for row in rows:
        other = row.get("aten_seconds") or row.get("library_seconds")
        if row.get("layer") and other and row.get("kernel_seconds"):
            found[row["layer"]] = other / row["kernel_seconds"]
    return found


def worth_it(table: dict[str, float]) -> frozenset[str]:
    """The layers of `measured` where the kernel is taken."""
    return frozenset(layer for layer, speedup in table.items() if speedup >= NEVER_BELOW)


def taken_on(device: torch.device | str) -> frozenset[str]:
    """The layers that `auto` gives to the kernels on this device; none on a CPU, or where nothing was measured.

    Asks the driver and may read a file: for when a network is switched, not for within its forward pass, where each
    such question breaks torch.compile's graph.
    """
    device = torch.device(device)
    return worth_it(measured(gpu_key(torch.cuda.get_device_name(device)))) if device.type == "cuda" else frozenset()


def kernel_for(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: int) -> Route:
    """The kernel that could take this convolution, `aten` where none can."""
    size = tuple(weight.shape[2:])
    if x.dtype == torch.float64:
        return "aten"
    if size == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return "pointwise"
    per_channel = groups == x.shape[1] == weight.shape[0]
    if per_channel and size in ((3, 3), (5, 5), (7, 7)) and stride in ((1, 1), (2, 2)):
        return "depthwise"
    return "aten"


def choose(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    fused: Fused = "auto",
    taken: Collection[str] = frozenset(),
    excited: bool = False,
) -> Route:
    """The path of this convolution, dilation 1: `kernels.conv.call`'s.

    fused   on: the kernel wherever there is one; off: aten; auto: the kernel for the layers in `taken`
    taken   by `layer_key`: `taken_on` of the GPU
    excited whether a squeeze-and-excitation goes into a pointwise convolution's load: measured as an op of its own

    On a CPU every path is the same plain PyTorch. Depends on nothing but its arguments' shapes and dtypes.
    """
    kernel = kernel_for(x, weight, stride, padding, groups)
    if fused == "off" or kernel == "aten" or (excited and (kernel != "pointwise" or groups > 1)):
        return "aten"
    if fused == "on":
        return kernel
    dtype = str(x.dtype).removeprefix("torch.")
    key = layer_key(
        "excited" if excited else kernel,
        x.shape[1],
        weight.shape[0],
        x.shape[2],
        x.shape[3],
        weight.shape[2],
        stride[0],
        groups,
        dtype,
    )
    return kernel if key in taken else "aten"


def fuses(fused: Fused, device: torch.device | str, arch: str = "") -> bool:
    """Whether the network `arch` runs through this package's layers at all.

    auto: only on a GPU on which its own fused step was measured to be faster than the compiled plain one. Layers that
    are faster one by one do not make it so: on an H200, whose table had 26 such layers, ResNet-50 went this way and
    took 2.6 times as long, both compiled (profiles/h200/archs.json, beside other processes): passes that inductor
    fuses with their neighbours are then operators of their own.
    """
    if fused != "auto":
        return fused == "on"
    device = torch.device(device)
    return device.type == "cuda" and networks_measured(gpu_key(torch.cuda.get_device_name(device))).get(arch, 0.0) > 1
