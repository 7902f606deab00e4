"""launch/train.py with what ranks add up of gradients noted, by micro-batch: bytes to the file that COUNTED names."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch.distributed as dist

from tests.launch.norm_free import NormFree

LEAST = 1000
"""Elements: what is smaller is a flag or a meter."""
counted: list[int] = []


SUMS = {"all_reduce": (0, "tensor"), "reduce": (0, "tensor")}
SUMS |= dict.fromkeys(("reduce_scatter_tensor", "reduce_scatter_single"), (1, "input"))
"""What adds up over ranks, and which argument; FSDP2 takes the last from PyTorch 2.15 on."""


def noted(function, which: int, name: str):
    """`function`, whose argument `which` is added up over ranks."""

    def note(*arguments, **named):
        tensor = arguments[which] if len(arguments) > which else named[name]
        if counted and tensor.numel() >= LEAST:
            counted[-1] += tensor.numel() * tensor.element_size()
        return function(*arguments, **named)

    return note


class Counting(NormFree):
    """Begins a count with each micro-batch."""

    def forward(self, images):
        if self.training:
            counted.append(0)
        return super().forward(images)


if __name__ == "__main__":
    from archs.registry import register
    from engine.config import parse
    from engine.train.run import train

    register("counting", paper="none: for tests", year=2026, image_size=32, parameters=0, multiply_adds=0.0)(Counting)
    for function, argument in SUMS.items():
        if hasattr(dist, function):
            setattr(dist, function, noted(getattr(dist, function), *argument))
    code = train(parse())
    Path(os.environ["COUNTED"]).with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(counted))
    sys.exit(code)
