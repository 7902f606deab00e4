"""The activations that the fused ops apply when they load a tensor, and their derivatives.

Both are written out, because a kernel needs the derivative at the value before the activation and has no
autograd to ask. NaN goes through every activation, as in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("identity", "relu", "relu6", "leaky_relu", "silu", "hardswish")


def check_activation(name: str) -> None:
    """Raise ValueError unless `name` is in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: one of {', '.join(ACTIVATIONS)}")


def activate(values: Tensor, name: str, slope: float = 0.01) -> Tensor:
    """The activation of `values`, any shape and floating dtype; `slope` is leaky_relu's below zero."""
    if name == "relu":
        return torch.where(values <= 0, torch.zeros_like(values), values)
    if name == "relu6":
        low = torch.where(values <= 0, torch.zeros_like(values), values)
        return torch.where(low >= 6, torch.full_like(low, 6.0), low)
    if name == "leaky_relu":
        return torch.where(values > 0, values, values * slope)
    if name == "silu":
        return values / (1 + torch.exp(-values))
    if name == "hardswish":
        gate = activate(values + 3, "relu6") / 6
        return values * gate
    return values


def derivative(values: Tensor, name: str, slope: float = 0.01) -> Tensor:
    """d activate(z) / dz at z = `values`; at a kink the one that torch's own backward takes."""
    one = torch.ones_like(values)
    zero = torch.zeros_like(values)
    if name == "relu":
        return torch.where(values <= 0, zero, one)
    if name == "relu6":
        return torch.where((values <= 0) | (values >= 6), zero, one)
    if name == "leaky_relu":
        return torch.where(values > 0, one, one * slope)
    if name == "silu":
        gate = 1 / (1 + torch.exp(-values))
        return gate * (1 + values * (1 - gate))
    if name == "hardswish":
        inner = torch.where(values < 3, values / 3 + 0.5, one)
        return torch.where(values <= -3, zero, inner)
    return one
