"""launch/train.py in fp64, where rounding is too small to grow into anything: what differs by more is no rounding.

A network's name with `_double` behind it is that network of fp64 parameters, on images made fp64; with `_nudged` its
first weights are up to half of fp32's last place away. DeepSpeed knows no fp64: what its code calls fp32 (masters,
gradients, what is sent) is fp64 here.
"""

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from archs.classifier import Classifier
from archs.registry import constructor, lookup, register

ULP = torch.finfo(torch.float32).eps


class DoubleTorch(types.ModuleType):
    """torch, whose single precision is double."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def double_deepspeed() -> None:
    """Let all of DeepSpeed that is imported by now see that torch."""
    import deepspeed.runtime.engine
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401

    seen = DoubleTorch("torch")
    for name, module in list(sys.modules.items()):
        if name.startswith("deepspeed.") and getattr(module, "torch", None) is torch:
            module.torch = seen  # type: ignore[attr-defined]


def double(name: str, nudge: float) -> Callable[..., Classifier]:
    """A constructor of that network in fp64, whose weights are off by up to `nudge` of each."""

    def build(num_classes: int, **options: Any) -> Classifier:
        network = constructor(name)(num_classes, **options).double()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in network.parameters():
                random = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.mul_(1 + nudge * (2 * random - 1))
        network.register_forward_pre_hook(lambda module, images: (images[0].double(),))
        return network

    return build


def register_doubles(name: str) -> None:
    """Beside a network those of fp64 parameters."""
    known = lookup(name)
    for kind, nudge in (("double", 0.0), ("nudged", ULP / 2)):
        add = register(
            f"{name}_{kind}",
            paper="none: for tests",
            year=2026,
            image_size=32,
            parameters=known.parameters,
            multiply_adds=known.multiply_adds,
        )
        add(double(name, nudge))


if __name__ == "__main__":
    from engine.config import parse
    from engine.train.run import train

    register_doubles("resnet18")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        double_deepspeed()
    sys.exit(train(parse()))
