"""Classes of unlike size: how many training images each has, and what is made up for.

Three remedies act on training alone: an epoch that draws each class equally often (Sampler), weights in the loss, or
logits that are shifted by the classes' shares. Evaluation counts images as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.config import DataConfig, OptimConfig
from engine.runs.wording import listed

UNLIKE = 1.5
"""Largest over smallest class from which on their sizes are worth a line."""


def class_counts(labels: np.ndarray, classes: int, only: np.ndarray | None = None) -> np.ndarray:
    """int64 [classes]: the images of each class among `only` (indices), or all.

    labels  int64 [N]
    """
    return np.bincount(labels if only is None else labels[only], minlength=classes)


def class_weights(counts: np.ndarray, balance: str, beta: float) -> np.ndarray | None:
    """float64 [classes]: what an image of each class counts in the loss; None where all count the same.

    weights    ∝ 1 / n
    effective  ∝ (1 - β) / (1 - βⁿ), the inverse of the effective number of images (Cui et al. 2019, arXiv:1901.05555,
               equation 3)

    Scaled so that the mean over the training images is 1: the learning rate keeps its meaning, and a batch's loss can
    be divided by its images, however it is split. The paper scales to a sum of `classes`, a constant factor. A class
    without training images has 0.
    """
    if balance not in ("weights", "effective"):
        return None
    there = np.maximum(counts, 1).astype(np.float64)
    raw = 1 / there if balance == "weights" else (1 - beta) / -np.expm1(there * np.log(beta))
    raw[counts == 0] = 0
    return raw * counts.sum() / (raw * counts).sum()


def logit_shift(counts: np.ndarray, strength: float) -> np.ndarray | None:
    """float64 [classes]: τ · log of each class's share, added to the logits in training; None for τ = 0.

    Menon et al. 2020, arXiv:2007.07314, equation 10. A class without training images is taken to have one.
    """
    return strength * np.log(np.maximum(counts, 1) / counts.sum()) if strength else None


def describe(classes: Sequence[str], counts: np.ndarray, data: DataConfig, optim: OptimConfig) -> str:
    """The sizes of the classes and what is done about them, in a line; empty where there is nothing to say."""
    there = counts[counts > 0]
    if not len(there):
        return ""
    ratio = there.max() / there.min()
    chosen = {
        "none": "",
        "sampler": "each class is drawn equally often",
        "weights": "loss weighted by 1 / images of the class",
        "effective": f"loss weighted by effective numbers, β {data.balance_beta:g}",
    }[data.balance]
    if optim.logit_adjust:
        chosen = f"logits adjusted by {optim.logit_adjust:g} · log of the class's share"
    if not chosen and ratio < UNLIKE:
        return ""
    order = np.argsort(-counts, kind="stable")
    largest, smallest = (f"{classes[place]} {counts[place]:,}" for place in (order[0], order[len(there) - 1]))
    empty = [classes[place] for place in np.flatnonzero(counts == 0)]
    told = f"classes {ratio:.3g}:1, {largest} to {smallest} training images"
    told += f", none of {listed(empty)}" if empty else ""
    return f"{told}: {chosen or 'nothing is done about it (--data.balance, --optim.logit-adjust)'}"
