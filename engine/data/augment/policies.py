"""Which operators an image gets, and how strong: pure functions of its random numbers.

The spaces and tables are those of the papers as torchvision v2 has them (RandAugment, TrivialAugment wide, AutoAugment
for ImageNet, AugMix); an operator's magnitude is in the units of engine.data.augment.operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.data.augment.operators import NUMBERS

SIGNED = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast", "sharpness")
"""To both sides with equal chance."""
RANGE = {"shear-x": 0.3, "shear-y": 0.3, "translate-x": 150 / 331, "translate-y": 150 / 331, "rotate": 30.0}
RANGE |= {"brightness": 0.9, "color": 0.9, "contrast": 0.9, "sharpness": 0.9}
"""Largest magnitude in RandAugment and AutoAugment; of translations the share of the side."""
WIDE = {"shear-x": 0.99, "shear-y": 0.99, "rotate": 135.0, "brightness": 0.99, "color": 0.99, "contrast": 0.99}
WIDE |= {"sharpness": 0.99}
WIDE_PIXELS = 32.0
"""Largest translation of TrivialAugment, whatever the image's size."""
PLAIN = ("auto-contrast", "equalize")
CHOICES = ("identity", *SIGNED, "posterize", "solarize", *PLAIN)
"""RandAugment's and TrivialAugment's 14 operators."""
BINS = 31
AUGMIX_BINS = 10
CHAINS, DEPTH = 3, 3
"""Chains of AugMix, and the most operators in one."""

AUTOAUGMENT = (
    "posterize .4 8 rotate .6 9, solarize .6 5 auto-contrast .6 0, equalize .8 0 equalize .6 0, "
    "posterize .6 7 posterize .6 6, equalize .4 0 solarize .2 4, equalize .4 0 rotate .8 8, "
    "solarize .6 3 equalize .6 0, posterize .8 5 equalize 1 0, rotate .2 3 solarize .6 8, "
    "equalize .6 0 posterize .4 6, rotate .8 8 color .4 0, rotate .4 9 equalize .6 0, equalize 0 0 equalize .8 0, "
    "invert .6 0 equalize 1 0, color .6 4 contrast 1 8, rotate .8 8 color 1 2, color .8 8 solarize .8 7, "
    "sharpness .4 7 invert .6 0, shear-x .6 5 equalize 1 0, color .4 0 equalize .6 0, equalize .4 0 solarize .2 4, "
    "solarize .6 5 auto-contrast .6 0, invert .6 0 equalize 1 0, color .6 4 contrast 1 8, equalize .8 0 equalize .6 0"
)
"""AutoAugment's 25 pairs for ImageNet (Cubuk et al. 2018, arXiv:1805.09501, table 9): operator, chance, tenth."""


@dataclass(frozen=True)
class Chosen:
    """Operators of each image, in the order in which they are applied."""

    numbers: np.ndarray
    """int64 [m, slots], as in operators.NUMBERS; 0 is none."""
    magnitudes: np.ndarray
    """float32 [m, slots]."""

    def of(self, part: slice) -> Chosen:
        """Those of some of the images."""
        return Chosen(self.numbers[part], self.magnitudes[part])


@dataclass(frozen=True)
class Policy:
    """A way to choose from uniform numbers."""

    draws: int
    """Numbers an image that it reads."""
    choose: Callable[[np.ndarray, int], Chosen]
    """From float64 [m, draws] in [0, 1) and the image's side in pixels."""


def strength(name: str, share: float | np.ndarray, wide: bool = False, side: int = 224) -> np.ndarray:
    """The magnitude without its sign at `share` of an operator's range."""
    share = np.asarray(share, dtype=np.float64)
    if name == "posterize":
        return np.rint(8 - share * (6 if wide else 4))
    if name == "solarize":
        return 1 - share
    if wide and name.startswith("translate"):
        return share * WIDE_PIXELS / side
    return share * (WIDE if wide else RANGE).get(name, 0.0)


def _pick(names: tuple[str, ...], which: np.ndarray, share: np.ndarray, sign: np.ndarray, wide: bool, side: int):
    """(numbers, magnitudes) of operators at uniform places `which`, at `share` of their ranges."""
    numbers, magnitudes = np.zeros(which.shape, np.int64), np.zeros(which.shape, np.float32)
    places = np.minimum((which * len(names)).astype(np.int64), len(names) - 1)
    for place, name in enumerate(names):
        here = places == place
        numbers[here] = NUMBERS.get(name, 0)
        values = strength(name, share[here], wide, side)
        magnitudes[here] = np.where(sign[here] < 0.5, -values, values) if name in SIGNED else values
    return numbers, magnitudes


def randaugment(operators: int, magnitude: int) -> Policy:
    """`operators` of 14 with replacement, at `magnitude` of 30 (Cubuk et al. 2019, arXiv:1909.13719)."""

    def choose(draws: np.ndarray, side: int) -> Chosen:
        which, sign = draws[:, :operators], draws[:, operators:]
        share = np.full(which.shape, magnitude / (BINS - 1))
        return Chosen(*_pick(CHOICES, which, share, sign, False, side))

    return Policy(2 * operators, choose)


def trivialaugment() -> Policy:
    """One of 14 at one of 31 strengths of the wide ranges (Müller & Hutter 2021, arXiv:2103.10158)."""

    def choose(draws: np.ndarray, side: int) -> Chosen:
        share = np.floor(draws[:, 1:2] * BINS) / (BINS - 1)
        return Chosen(*_pick(CHOICES, draws[:, :1], share, draws[:, 2:3], True, side))

    return Policy(3, choose)


def autoaugment_table() -> list[list[tuple[str, float, int]]]:
    """AUTOAUGMENT as pairs of (operator, chance, tenth)."""
    rows = []
    for pair in AUTOAUGMENT.split(", "):
        words = pair.split()
        rows.append([(words[at], float(words[at + 1]), int(words[at + 2])) for at in (0, 3)])
    return rows


def autoaugment() -> Policy:
    """One of 25 pairs, each of its two operators with a chance of its own."""
    table = autoaugment_table()

    def choose(draws: np.ndarray, side: int) -> Chosen:
        rows = np.minimum((draws[:, 0] * len(table)).astype(np.int64), len(table) - 1)
        numbers, magnitudes = np.zeros((len(draws), 2), np.int64), np.zeros((len(draws), 2), np.float32)
        for image, row in enumerate(rows.tolist()):
            for slot, (name, chance, tenth) in enumerate(table[row]):
                if draws[image, 1 + slot] < chance:
                    value = float(strength(name, tenth / 9, side=side))
                    signed = name in SIGNED and draws[image, 3 + slot] < 0.5
                    numbers[image, slot], magnitudes[image, slot] = NUMBERS[name], -value if signed else value
        return Chosen(numbers, magnitudes)

    return Policy(5, choose)


def augmix(severity: int) -> Policy:
    """Operators of CHAINS chains of one to DEPTH, side by side (Hendrycks et al. 2019, arXiv:1912.02781).

    The slots are chain by chain. Strength: one of the first `severity` of ten.
    """
    names = tuple(name for name in CHOICES if name != "identity")
    slots = CHAINS * DEPTH

    def choose(draws: np.ndarray, side: int) -> Chosen:
        which, level, sign = (draws[:, at * slots : (at + 1) * slots] for at in range(3))
        share = np.floor(level * severity) / (AUGMIX_BINS - 1)
        numbers, magnitudes = _pick(names, which, share, sign, False, side)
        magnitudes = np.where(numbers == NUMBERS["posterize"], magnitudes - 4, magnitudes)  # 4 bits and fewer
        for name in ("translate-x", "translate-y"):
            here = numbers == NUMBERS[name]
            magnitudes[here] *= (1 / 3) / RANGE[name]
        depth = 1 + np.floor(draws[:, 3 * slots :] * DEPTH).astype(np.int64)  # [m, CHAINS]
        shown = np.tile(np.arange(DEPTH), CHAINS)[None] < np.repeat(depth, DEPTH, axis=1)
        return Chosen(np.where(shown, numbers, 0), magnitudes.astype(np.float32))

    return Policy(3 * slots + CHAINS, choose)


def jitter(amounts: tuple[float, float, float, float]) -> Policy:
    """Brightness, contrast, saturation and hue in a random order, each uniform around none."""
    names = ("brightness", "contrast", "color", "hue")

    def choose(draws: np.ndarray, side: int) -> Chosen:
        order = np.argsort(draws[:, :4], axis=1, kind="stable")
        values = (2 * draws[:, 4:8] - 1) * np.array(amounts)
        numbers = np.array([NUMBERS[name] if amount else 0 for name, amount in zip(names, amounts, strict=True)])
        return Chosen(numbers[order], np.take_along_axis(values, order, axis=1).astype(np.float32))

    return Policy(8, choose)


def sometimes(name: str, share: float, low: float = 0.0, high: float = 0.0) -> Policy:
    """One operator on `share` of the images, its magnitude uniform between `low` and `high`."""

    def choose(draws: np.ndarray, side: int) -> Chosen:
        numbers = np.where(draws[:, :1] < share, NUMBERS[name], 0).astype(np.int64)
        return Chosen(numbers, (low + (high - low) * draws[:, 1:2]).astype(np.float32))

    return Policy(2, choose)
