"""How far two runs of the same steps are apart: in their losses, and in what they leave."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Apart:
    """A run beside its reference."""

    losses: float
    """The largest difference of a step."""
    expected: dict[str, Tensor]
    """The reference's weights and running statistics."""
    distance: dict[str, float]
    """Euclidean, of each of them."""
    size: dict[str, float]
    """Its norm in the reference."""

    @property
    def weights(self) -> float:
        """Of all together, over their norm."""
        return math.hypot(*self.distance.values()) / math.hypot(*self.size.values())

    def __str__(self) -> str:
        return f"losses within {self.losses:.1e}, weights within {self.weights:.1e}"


def apart(rows: Callable[[Path, str], list[dict]], run: Path, reference: Path, steps: int) -> Apart:
    """rows  the fixture; both have to have made so many steps"""
    ours, theirs = rows(run, "step"), rows(reference, "step")
    assert len(ours) == len(theirs) == steps
    losses = max(abs(left["loss"] - right["loss"]) for left, right in zip(ours, theirs, strict=True))
    found = load_file(run / "model.safetensors")
    expected = {
        name: tensor
        for name, tensor in load_file(reference / "model.safetensors").items()
        if tensor.is_floating_point()
    }
    distance = {name: (found[name].double() - tensor.double()).norm().item() for name, tensor in expected.items()}
    size = {name: tensor.double().norm().item() for name, tensor in expected.items()}
    return Apart(losses, expected, distance, size)


def beyond_rounding(found: Apart) -> dict[str, float]:
    """Distances of the tensors that are off by more than 1e-4 of their norm and 1e-7 a number.

    BatchNorm's biases begin at 0 and move by 1e-4 in 30 steps of 2e-4, by sums that cancel: 3e-7 of it is rounding.
    """
    return {
        name: distance
        for name, distance in found.distance.items()
        if distance > 1e-4 * found.size[name] + 1e-7 * math.sqrt(found.expected[name].numel())
    }
