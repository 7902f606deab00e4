"""Pillow's resize as products with matrices of filter weights, of arithmetic that every device and exporter knows."""

from __future__ import annotations

from torch import Tensor, where, zeros_like


def filter_weights(
    centres: Tensor, widening: Tensor, places: Tensor, interpolation: str, inside: Tensor | None = None
) -> Tensor:
    """[..., wanted, source] weights of each source pixel of a side in each wanted one; rows add up to 1.

    centres        float32 [..., wanted], where each wanted pixel's middle lies in the source, in pixels
    widening       how much wider the filter is where the resize shrinks, at least 1; broadcast against the result
    places         float32 [source], 0, 1, 2, …
    interpolation  bilinear, a triangle, or bicubic
    inside         bool, broadcast against the result, the pixels that may be looked at; None is all
    """
    distance = ((places + 0.5) - centres.unsqueeze(-1)).abs() / widening
    weights = _keys_cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0.0)
    if inside is not None:
        weights = weights * inside
    return weights / weights.sum(dim=-1, keepdim=True)


def _keys_cubic(x: Tensor) -> Tensor:
    """Keys 1981, "Cubic convolution interpolation", with a = -1/2: at distances x >= 0, zero from 2 on."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return where(x < 1, near, where(x < 2, far, zeros_like(x)))
