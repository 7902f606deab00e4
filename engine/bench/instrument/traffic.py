"""Bytes of activations that a training step moves, by construction: each operator's maps, read and written once.

    python -m engine.bench.instrument.traffic            writes profiles/activation-traffic.json

Three ways to run a network:
library  convolutions by a library, all pointwise work fused around them as a compiler does; BatchNorm reads its input
         twice forward and twice backward: 3X + 11Y elements for convolution, BatchNorm and activation (X in, Y out)
fused    through `kernels` in 16 bits on sm_90, counted from the operators that really run: 3X + 3Y to 4X + 5Y where a
         kernel has both sides, and more where the products are the library's and their operands are stored
floor    each layer's input and output once forward, and with their gradients once backward: 3X + 3Y

A model, not a measurement: perfect caches, no layout copies; weights and vectors are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import archs
from archs.fused import set_fused
from engine.runs.provenance import ROOT
from kernels.product_routes import (
    LEAST_PIXELS,
    Sizes,
    backward_by_library,
    forward_by_library,
    keeps_operands,
    one_kernel,
)

TABLE = ROOT / "profiles" / "activation-traffic.json"
NETWORKS = ("mobilenetv1", "mobilenetv2", "xception", "efficientnet_b0", "shufflenet_g3", "resnext50", "darknet53")
TRACED = 7
"""Images that are traced; no layer has seven channels, so that nothing else has this first axis."""
FREE = ("view", "detach", "t.", "permute", "_unsafe_view", "reshape", "expand", "alias", "empty", "zeros_like", "ones")
"""Operators that move nothing, by how their names begin."""
POINTWISE = ("relu", "hardtanh", "leaky_relu", "silu", "threshold", "sigmoid", "mul", "div", "clone", "_to_copy", "sum")


def elements(*tensors: Any) -> int:
    """Elements an image of the maps [TRACED, C, H, W] with more than one pixel among `tensors`."""
    maps = (t for t in tree_leaves(tensors) if isinstance(t, Tensor) and t.ndim == 4 and t.shape[0] == TRACED)
    return sum(t.numel() // TRACED for t in maps if t.shape[2] * t.shape[3] > 1)


class Traffic(TorchDispatchMode):
    """Within, every operator's elements are added up by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()
        self.floor = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        name = str(operator).removeprefix("aten.").removesuffix(".default")
        kind, count = self._count(name, args, result)
        self.moved[kind] += count
        return result

    def _count(self, name: str, args: Any, result: Any) -> tuple[str, int]:
        if name == "hcr.conv":
            x, y, prologue = elements(args[0]), elements(result[0]), args[2] is not None or args[5] != "identity"
            self.floor += x + y
            if args[13] == "pointwise" and forward_by_library(
                Sizes.of(*args[:2], *args[10:12], prologue), LEAST_PIXELS
            ):
                return args[13], x + 2 * x * prologue + y + y * bool(args[12])
            if args[13] != "aten":
                return args[13], x + y
            return "convolution", x + y + 2 * x * prologue + y * bool(args[12])
        if name == "hcr.conv_backward":
            return self._fused_backward(args)
        if name == "convolution":
            x, y = elements(args[0]), elements(result)
            self.floor += x + y
            return "convolution", x + y
        if name == "convolution_backward":
            dy, x = elements(args[0]), elements(args[1])
            dgrad, wgrad = args[10][0], args[10][1]
            self.floor += x * (1 + dgrad) + 2 * dy
            return "convolution", dgrad * (x + dy) + wgrad * (x + dy)
        if "batch_norm_backward" in name:
            return "batch_norm", 5 * elements(args[0])
        if "batch_norm" in name:
            return "batch_norm", 3 * elements(args[0])
        if name == "hcr.excited_pointwise":
            x, y = elements(args[0]), elements(result[0])
            self.floor += x + y
            return "squeeze_excite", 2 * x + y  # pooled, then multiplied
        if name == "hcr.excited_pointwise_backward":
            dy, x, y = elements(args[0]), elements(args[3]), args[5] is not None
            self.floor += 2 * x + 2 * dy
            # dY, dA, the five sums and the gated A from dA and x, dweight, dx from dA and x
            return "squeeze_excite", (2 + y) * dy * y + (dy + x) + 3 * x + (dy + x) + 3 * x
        if name == "hcr.squeeze_excite":
            return "squeeze_excite", 3 * elements(args[0])
        if name == "hcr.squeeze_excite_backward":
            return "squeeze_excite", 5 * elements(args[1])
        if name.startswith("hcr."):
            return name.removeprefix("hcr.").removesuffix("_backward"), elements(args, result)
        if name.startswith("add"):
            return "add", elements(result)
        if name.startswith(FREE) or name.startswith(POINTWISE):
            return "free", 0
        return "other", elements(args, result)

    def _fused_backward(self, args: Any) -> tuple[str, int]:
        dy, x, y = elements(args[0]), elements(args[3]), args[5] is not None
        weight, groups, path, needs_input = args[4], args[15], args[17], args[18]
        prologue = args[7] is not None or args[10] != "identity"
        self.floor += x * (1 + needs_input) + 2 * dy
        gradient = dy * (1 + y)  # dy, and y beside it for BatchNorm's backward
        if path == "depthwise":
            together = weight.shape[-1] < 7
            return path, 2 * x + gradient if together else 3 * x + 2 * gradient
        if path == "pointwise":
            layer = Sizes.of(*args[3:5], groups, args[16], prologue)
            formed = (gradient + dy) * y  # dY, where it is stored
            if needs_input and keeps_operands(layer):
                return path, gradient + dy * y + 3 * x + (x + dy)
            if backward_by_library(layer):
                return path, formed + (dy + x + 4 * x * prologue) * needs_input + (dy + x)
            return path, 2 * x + gradient if needs_input and one_kernel(layer) else 3 * x + 2 * gradient
        applied = (gradient + dy) * y
        return "convolution", applied + (x + dy) * (1 + needs_input) + 2 * x * prologue + 3 * x * prologue * needs_input


def traffic(arch: str | nn.Module, batch: int, size: int, itemsize: int = 2) -> dict[str, Any]:
    """Bytes moved in one training step of `batch` images of `size` pixels, fused and not, and the floor; by kind."""
    found: dict[str, Any] = {}
    for way in ("library", "fused"):
        with torch.device("meta"):
            model = archs.build(arch, num_classes=1000) if isinstance(arch, str) else arch.to("meta")
            images = torch.empty(TRACED, 3, size, size).to(memory_format=torch.channels_last)
        set_fused(model, "on" if way == "fused" else "off", "cpu")
        model.zero_grad()
        with Traffic() as counted:
            logits = model.train()(images)
            getattr(logits, "logits", logits).sum().backward()
        found[way] = {
            "bytes": batch * itemsize * sum(counted.moved.values()),
            "by_kind": {kind: batch * itemsize * count for kind, count in sorted(counted.moved.items()) if count},
        }
        found["floor_bytes"] = batch * itemsize * counted.floor
    found["library_over_fused"] = round(found["library"]["bytes"] / found["fused"]["bytes"], 3)
    found["fused_over_floor"] = round(found["fused"]["bytes"] / found["floor_bytes"], 3)
    return found


def main() -> None:
    """Write the table of every network in NETWORKS at batch 128, 224 pixels, bf16."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=TABLE)
    output = parser.parse_args().output
    rows = {arch: traffic(arch, 128, 224) for arch in NETWORKS}
    head = {
        "command": "python -m engine.bench.instrument.traffic",
        "batch": 128,
        "image_size": 224,
        "bytes_an_element": 2,
    }
    output.write_text(json.dumps(head | {"networks": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
