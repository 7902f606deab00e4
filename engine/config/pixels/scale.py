"""On which scale mean and standard deviation of pixels are meant."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config.checks import require


def refuse_other_scale(mean: Sequence[float], std: Sequence[float], flag: str = "") -> None:
    """Raise ConfigError for what cannot be of pixels of which white is 1, such as 123.675, which is of pixels to 255.

    A network would train on it all the same, on images that are nearly one colour. `flag` stands before the names.
    """
    scale = "where white is 1 (what is of pixels to 255 is divided by 255)"
    require(all(0 <= value <= 1 for value in mean), f"{flag}mean must be from 0 to 1 {scale}, not {tuple(mean)}")
    require(all(value <= 1 for value in std), f"{flag}std can be at most 1 {scale}, not {tuple(std)}")
