"""A stem's weights for grey images in place of coloured ones, and the reverse.

A grey x is (x - m) / s to a grey stem, and its copy in three colours (x - m_c) / s_c: both give the same where the grey
weights are Σ_c W_c · s / s_c, and Σ_c,k W_c,k (m - m_c) / s_c over all taps k is added behind the convolution. That sum
goes into its bias or, negative, the running mean of the BatchNorm behind; where images are padded the outermost outputs
differ unless all m_c are m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalised:
    """What was done to each channel of the images that a stem sees: minus mean, over std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Converted:
    """Weights of a stem for other channels."""

    tensors: dict[str, Tensor]
    """All of them, the stem's changed."""
    told: str = ""
    """What was done, in words; empty where nothing was."""


def stem_keys(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Keys of convolutions that differ in their input channels alone, 1 for 3 or 3 for 1."""
    return [
        key
        for key, tensor in wanted.items()
        if key in given
        and tensor.ndim == given[key].ndim == 4
        and {tensor.shape[1], given[key].shape[1]} == {1, 3}
        and tensor.shape[:1] + tensor.shape[2:] == given[key].shape[:1] + given[key].shape[2:]
    ]


def for_channels(
    model: nn.Module, given: Mapping[str, Tensor], theirs: Normalised | None, ours: Normalised | None
) -> Converted:
    """The weights `given`, under the model's own keys, with their stem for the channels of `model`.

    theirs, ours  how the images were normalised that the weights were trained on, and those of the model; None of
                  either is taken to be alike in all channels
    """
    tensors, wanted = dict(given), model.state_dict()
    keys = stem_keys(given, wanted)
    if not keys:
        return Converted(tensors)
    grey = wanted[keys[0]].shape[1] == 1
    factor, move = (
        torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in renormalisation(theirs, ours, 3)
    )
    left_out = False
    for key in keys:
        weight = given[key].double()
        weight = weight if grey else weight.expand(-1, 3, -1, -1) / 3
        offset = (weight * move).sum(dim=(1, 2, 3))
        weight = weight * factor
        tensors[key] = (weight.sum(dim=1, keepdim=True) if grey else weight).to(given[key].dtype)
        if offset.abs().max() > 1e-7 * weight.abs().max():
            left_out |= not _add(model, tensors, key, offset)
    kind = "summed for grey images" if grey else "spread over three colours"
    lost = "; nothing behind it takes what the means differ by, so that is left out" if left_out else ""
    return Converted(tensors, f"{', '.join(keys)} {kind}{lost}")


def renormalisation(
    theirs: Normalised | None, ours: Normalised | None, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """(scale, shift) of each channel: their normalised value of a level is scale · ours + shift.

    theirs, ours  grey's single numbers stand for every channel; None of either is taken to be the other
    """
    if theirs is None or ours is None:
        return [1.0] * channels, [0.0] * channels
    mean, std, own_mean, own_std = (
        values if len(values) == channels else values * channels
        for values in (theirs.mean, theirs.std, ours.mean, ours.std)
    )
    scale = [own / other for own, other in zip(own_std, std, strict=True)]
    shift = [(own - other) / by for own, other, by in zip(own_mean, mean, std, strict=True)]
    return scale, shift


def _add(model: nn.Module, tensors: dict[str, Tensor], key: str, offset: Tensor) -> bool:
    """Add `offset`, float64 [channels], to what the convolution at `key` gives; whether there is a place for it."""
    bias = key.removesuffix("weight") + "bias"
    if bias in tensors:
        tensors[bias] = (tensors[bias].double() + offset).to(tensors[bias].dtype)
        return True
    modules = list(model.named_modules())
    at = next(place for place, (name, _) in enumerate(modules) if f"{name}.weight" == key)
    following = next(((name, one) for name, one in modules[at + 1 :] if next(one.children(), None) is None), None)
    if following is None or not isinstance(following[1], nn.BatchNorm2d) or following[1].num_features != len(offset):
        return False
    if following[0].rpartition(".")[0] != modules[at][0].rpartition(".")[0]:
        return False  # of a block that others look past
    mean = f"{following[0]}.running_mean"
    tensors[mean] = (tensors[mean].double() - offset).to(tensors[mean].dtype)
    return True
