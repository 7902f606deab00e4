"""What a file of weights says of its network, held to its tensors before memory is taken: all of it may be wrong.

A width of a million, and positions for images of 16,000 pixels, are made of shapes alone here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

import archs
from engine.config import ConfigError
from engine.config.pixels.image_size import ImageSize

if TYPE_CHECKING:
    from torch import Tensor


def refuse_other_description(
    arch: str,
    classes: int,
    image_size: ImageSize,
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    origin: str,
) -> None:
    """Raise ConfigError, which begins with `origin`, unless the network of this description has these tensors.

    options  what `archs.build` is told beside the name
    tensors  of which names and shapes are looked at; on any device
    """
    try:
        with torch.device("meta"):
            wanted = archs.build(arch, classes, image_size=image_size, **options).state_dict()
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{origin}: {told}") from None
    if other := differences(wanted, tensors):
        raise ConfigError(f"{origin}: not the weights of {arch}: {other}")


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How the tensors of a file are not those that a network wants, in words; empty where they are."""
    shapes = [
        f"{key} is {list(found[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in found],
        "not of it": [key for key in found if key not in wanted],
        "of another shape": shapes,
    }
    told = [
        f"{len(keys)} tensors {kind} ({', '.join(keys[:2])}{', …' if len(keys) > 2 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    return "; ".join(told)
