"""How an image becomes the numbers that a network sees: one value that travels with the weights.

Weights expect the pixels they were trained on. What a run uses is written into its config.yaml and into its weights
(engine.runs); evaluation, prediction and export take it from there, and nobody assumes it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from engine.config import ConfigError, DataConfig, require
from engine.config.pixels.image_size import ImageSize, px, sides, size_from
from engine.data.sources.source import Source

Interpolation = Literal["bilinear", "bicubic"]
CHOSEN = ("mean", "std", "eval_crop", "interpolation")
"""Fields that `DataConfig` can name; where it does not they come from the weights, else from the data."""


@dataclass(frozen=True)
class Preprocessing:
    """RGB of 0 to 1, resized with an antialiasing filter, cut, minus `mean`, over `std`."""

    mean: tuple[float, float, float]
    """Of each RGB channel, on a scale where white is 1."""
    std: tuple[float, float, float]
    """Standard deviation of each RGB channel on the same scale."""
    eval_crop: float
    """Side of the centre crop over the shorter side of the resized image: 0.875 is 224 out of 256."""
    interpolation: Interpolation
    """Filter of the resize: triangle, or the cubic of Keys 1981 with a = -1/2, each widened where it shrinks."""
    image_size: ImageSize
    """Side of the images that the network sees in pixels, or (height, width)."""
    channels: int = 3
    """Colours that the network takes; images are read as RGB."""

    def __post_init__(self) -> None:
        require(len(self.mean) == len(self.std) == 3, "mean and std need a value a channel: red, green, blue")
        require(min(self.std) > 0, f"std must be above 0 in every channel, not {self.std}")
        require(0 < self.eval_crop <= 1, f"the crop share must be in (0, 1], not {self.eval_crop}")
        require(self.interpolation in get_args(Interpolation), f"no interpolation is called {self.interpolation!r}")
        height, width = sides(self.image_size)
        require(min(height, width) >= 1, f"the image size must be 1 pixel or more, not {self.image_size}")
        require(self.channels == 3, f"images are read as RGB: 3 channels, not {self.channels}")

    @classmethod
    def of(cls, source: Source, data: DataConfig, weights: Preprocessing | None = None) -> Preprocessing:
        """What `data` names; for what it does not, what the `weights` expect, else what the data has."""
        base = weights or Preprocessing(source.mean, source.std, source.eval_crop, "bilinear", data.side)
        named = {name: getattr(data, name) for name in CHOSEN if getattr(data, name) is not None}
        return replace(base, **named, image_size=data.image_size or base.image_size)

    @classmethod
    def named_by(cls, data: DataConfig) -> Preprocessing | None:
        """What `data` alone says, as a run's config.yaml does; None where it leaves something open."""
        named = {name: getattr(data, name) for name in CHOSEN}
        return None if None in named.values() or not data.image_size else cls(**named, image_size=data.image_size)

    def into(self, data: DataConfig) -> DataConfig:
        """`data` with all of this named."""
        return replace(data, **{name: getattr(self, name) for name in CHOSEN}, image_size=self.image_size)

    def describe(self) -> str:
        """`224 px, crop 0.875, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225`."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        crop = f"{self.eval_crop:.4g}"
        return f"{px(self.image_size)}, crop {crop}, {self.interpolation}, mean {mean}, std {std}"

    def to_json(self) -> str:
        """For a file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """What `to_json` gave. Raises ConfigError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in ("mean", "std"):
                fields[name] = tuple(float(value) for value in fields[name])
            fields["image_size"] = size_from(fields["image_size"])
            return cls(**fields)
        except ConfigError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"the preprocessing that the weights name cannot be read: {error}") from None
