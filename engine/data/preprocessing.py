"""How an image becomes the numbers that a network sees: one value that travels with the weights.

Weights expect the pixels they were trained on. What a run uses is written into its config.yaml and into its weights
(engine.runs); evaluation, prediction and export take it from there, and nobody assumes it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from operator import index
from typing import Any, Literal, get_args

from engine.config import ConfigError, DataConfig, require
from engine.config.data import SMALLEST_CROP
from engine.config.pixels.image_size import LARGEST_SIDE, ImageSize, px, sides, size_from
from engine.config.pixels.scale import refuse_other_scale
from engine.data.sources.source import Source

Interpolation = Literal["bilinear", "bicubic"]
GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey picture (ITU-R BT.601), as Pillow and DALI take them."""
CHOSEN = ("mean", "std", "eval_crop", "interpolation")
"""Fields that `DataConfig` can name; where it does not they come from the weights, else from the data."""


@dataclass(frozen=True)
class Preprocessing:
    """RGB or grey of 0 to 1, resized with an antialiasing filter, cut, minus `mean`, over `std`."""

    mean: tuple[float, ...]
    """Of each channel, on a scale where white is 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel on the same scale."""
    eval_crop: float
    """Side of the centre crop over the shorter side of the resized image: 0.875 is 224 out of 256."""
    interpolation: Interpolation
    """Filter of the resize: triangle, or the cubic of Keys 1981 with a = -1/2, each widened where it shrinks."""
    image_size: ImageSize
    """Side of the images that the network sees in pixels, or (height, width)."""
    channels: int = 3
    """Colours that the network takes: images are read as RGB, or as grey where it is 1."""
    bits: int = 8
    """Of each colour that are kept while images are resized: 8 or 16."""

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), f"images are read as RGB or grey: 3 channels or 1, not {self.channels}")
        require(self.bits in (8, 16), f"images are read with 8 or 16 bits a colour, not {self.bits}")
        require(
            len(self.mean) == len(self.std) == self.channels,
            f"mean and std need a value for each of {self.channels} channels",
        )
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        require(finite, f"mean and std must be finite, not {self.mean} and {self.std}")
        require(min(self.std) > 0, f"std must be above 0 in every channel, not {self.std}")
        refuse_other_scale(self.mean, self.std)
        require(
            SMALLEST_CROP <= self.eval_crop <= 1,
            f"the crop share must be from {SMALLEST_CROP} to 1, not {self.eval_crop}",
        )
        require(self.interpolation in get_args(Interpolation), f"no interpolation is called {self.interpolation!r}")
        height, width = sides(self.image_size)
        require(min(height, width) >= 1, f"the image size must be 1 pixel or more, not {self.image_size}")
        most = f"the image size can be at most {LARGEST_SIDE:,} pixels a side, not {px(self.image_size)}"
        require(max(height, width) <= LARGEST_SIDE, most)

    @classmethod
    def of(cls, source: Source, data: DataConfig, weights: Preprocessing | None = None) -> Preprocessing:
        """What `data` names; for what it does not, what the `weights` expect, else what the data has."""
        base = weights or Preprocessing(
            source.mean, source.std, source.eval_crop, "bilinear", data.side, len(source.mean)
        )
        named = {name: getattr(data, name) for name in CHOSEN if getattr(data, name) is not None}
        size, bits = data.image_size or base.image_size, data.bits or base.bits
        return replace(base.of_channels(data.channels), **named, image_size=size, bits=bits)

    def of_channels(self, channels: int) -> Preprocessing:
        """The same for grey images, whose mean is that of the greys and whose deviation is the colours' mean one, or
        for coloured ones, each of whose channels is as the grey one was."""
        if channels == self.channels:
            return self
        if channels == 3:
            return replace(self, mean=self.mean * 3, std=self.std * 3, channels=3)
        alike = len({*self.mean}) == len({*self.std}) == 1
        mean = self.mean[0] if alike else sum(share * value for share, value in zip(GREY, self.mean, strict=True))
        return replace(self, mean=(mean,), std=(self.std[0] if alike else sum(self.std) / 3,), channels=1)

    @classmethod
    def named_by(cls, data: DataConfig) -> Preprocessing | None:
        """What `data` alone says, as a run's config.yaml does; None where it leaves something open."""
        named = {name: getattr(data, name) for name in CHOSEN}
        if None in named.values() or not data.image_size:
            return None
        return cls(**named, image_size=data.image_size, channels=data.channels, bits=data.bits or 8)

    def into(self, data: DataConfig) -> DataConfig:
        """`data` with all of this named."""
        named = {name: getattr(self, name) for name in (*CHOSEN, "image_size", "channels", "bits")}
        return replace(data, **named)

    def describe(self) -> str:
        """`224 px, crop 0.875, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225`."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        crop = f"{self.eval_crop:.4g}"
        kind = ("" if self.channels == 3 else "grey, ") + ("" if self.bits == 8 else "16 bits, ")
        return f"{px(self.image_size)}, {kind}crop {crop}, {self.interpolation}, mean {mean}, std {std}"

    def to_json(self) -> str:
        """For a file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, origin: str) -> Preprocessing:
        """What `to_json` gave. Raises ConfigError, which begins with `origin`, for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in ("mean", "std"):
                fields[name] = tuple(float(value) for value in fields[name])
            fields |= {name: index(fields[name]) for name in ("channels", "bits") if name in fields}
            fields["image_size"] = size_from(fields["image_size"])
            return cls(**fields)
        except ConfigError as error:
            raise ConfigError(f"{origin}: the preprocessing that the weights name cannot be meant: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ConfigError(f"{origin}: the preprocessing that the weights name cannot be read: {error}") from None
