"""Which images: the fields of the group `data`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from engine.config.checks import require
from engine.config.flag import TopLevel
from engine.config.pixels.image_size import ImageSize, px, sides, size_in_words, size_of
from engine.config.pixels.scale import refuse_other_scale

USUAL_SIDE = 224
"""Pixels of an image's side where neither a person nor pretrained weights say: what most of the networks are for."""
SMALLEST_CROP = 0.01
"""Share of an image's side in evaluation: far below what any network is made for, far above what overflows."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the device."""

    name: Literal["auto", "digits", "mnist", "cifar10", "folder"] = "auto"
    """Source of images; auto is `folder` where a root is given and `digits` where none is."""
    root: Path | None = None
    """The data: for `folder` train/ and val/, class folders alone, a list (.csv .tsv .jsonl .parquet), tar shards or a
    saved dataset; torchvision's layout for mnist and cifar10."""
    val_share: float = 0.2
    """Share of each class that is held out for validation where the data has no val split."""
    split_seed: int = 0
    """Seed of that choice; runs of any --seed share it."""
    group_by: str = ""
    """Pattern whose first group (or whole match) in a path names the image's group, as 'patient\\d+': a group is on
    one side only, in a held-out share and in folds."""
    columns: str = ""
    """Columns of a list by what they hold, as 'path=file,label=breed'; empty is guessed and said."""
    image_size: Annotated[ImageSize, TopLevel] = 0
    """Side of the images that the network sees in pixels, or HEIGHT WIDTH; 0 is what the pretrained weights expect,
    else 224."""
    channels: Literal[1, 3] = 3
    """Colours that the network sees: red, green and blue, or 1 for grey, into which coloured images are turned."""
    bits: Literal[0, 8, 16] = 0
    """Bits of a pixel's colour that are kept until the network's own precision; 0 is 16 where a look at the training
    images finds such, else 8."""
    progressive_from: int = 0
    """Size in pixels of the first training images, which grow to image_size over the run; 0 is no growth."""
    progressive_stages: int = 4
    """Sizes that growing images pass through, the first and the last included."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that does not decode is reported by path, then skipped or refused."""
    backend: Literal["auto", "dali", "torchvision"] = "auto"
    """Who decodes; auto is DALI where it has a wheel, and torch for small sets that a GPU holds decoded."""
    workers: int = 0
    """Decoding threads (DALI) or processes (torchvision); 0 is one a core, at most 8."""
    prefetch: int = 2
    """Batches prepared ahead."""
    readers: int = 16
    """Threads that read files for DALI: on storage that answers late, images a second × seconds an answer."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Random horizontal flip in training; auto is on for photographs and off for digits."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area that a training crop keeps; none is the source's own."""
    mean: tuple[float] | tuple[float, float, float] | None = None
    """Mean of red, green and blue, or of grey, that is taken off, where white is 1; none is what the pretrained weights
    expect, else the source's own."""
    std: tuple[float] | tuple[float, float, float] | None = None
    """Standard deviation of each that pixels are divided by; none as for the mean."""
    eval_crop: float | None = None
    """Side of the centre crop in evaluation over the shorter side of the resized image; none as for the mean."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter of every resize; none as for the mean, bilinear where no weights say."""
    cache: Literal["off", "auto", "ram", "disk"] = "off"
    """Decode images once, at up to twice the size that evaluation sees, and keep them in memory or in HCR_CACHE; auto
    where there is room and no image would be shrunk."""
    on_leak: Literal["warn", "error"] = "warn"
    """Held-out images that are training images too: said, or refused after all of the data was examined."""
    balance: Literal["none", "sampler", "weights", "effective"] = "none"
    """For classes of unlike size: each class drawn equally often, or the loss weighted by 1 / images of the class, or
    by the effective number of its images (Cui et al. 2019, arXiv:1901.05555)."""
    balance_beta: float = 0.999
    """Cui's β of balance effective: an image more of a class of 1 / (1 - β) images and above counts little."""
    limit: int = 0
    """Train on this many images only, a seeded random choice; 0 is all."""
    folds: int = 0
    """Parts of a cross-validation over all images, training and val ones together; 0 is none."""
    fold: int = 0
    """Which part is validated on, from 0; the others are trained on."""
    download: bool = True
    """Let mnist and cifar10 be downloaded where they are missing."""

    def __post_init__(self) -> None:
        size = size_of(*sides(self.image_size))
        object.__setattr__(self, "image_size", size)
        require(
            size == 0 or min(sides(size)) >= 8,
            f"--image-size must be at least 8 pixels (or 0: that of the pretrained weights), not {size_in_words(size)}",
        )
        require(
            isinstance(size, int) or not self.progressive_from,
            f"--data.progressive-from grows square images, and these are {size_in_words(size)}: one or the other",
        )
        largest = max(sides(size)) or self.progressive_from  # it is looked at again when the size is known
        require(
            self.progressive_from == 0 or 8 <= self.progressive_from <= largest,
            f"--data.progressive-from must be 0 (no growth) or from 8 to the image size of {px(self.side)}, "
            f"not {self.progressive_from}",
        )
        require(
            self.progressive_stages >= 2,
            f"--data.progressive-stages must be at least 2, not {self.progressive_stages}",
        )
        require(0 < self.val_share < 1, f"--data.val-share must be above 0 and below 1, not {self.val_share}")
        require(self.split_seed >= 0, f"--data.split-seed must be 0 or more, not {self.split_seed}")
        require(not self.group_by or _is_pattern(self.group_by), f"--data.group-by {self.group_by!r} is no pattern")
        require(self.workers >= 0, f"--data.workers must be 0 (one a core) or more, not {self.workers}")
        require(self.prefetch >= 1, f"--data.prefetch must be at least 1 batch, not {self.prefetch}")
        require(self.readers >= 1, f"--data.readers must be at least 1 thread, not {self.readers}")
        require(self.limit >= 0, f"--data.limit must be 0 (all images) or more, not {self.limit}")
        require(self.folds == 0 or self.folds >= 2, f"--data.folds must be 0 (none) or at least 2, not {self.folds}")
        require(
            0 <= self.fold < max(1, self.folds),
            f"--data.fold must be from 0 to one less than --data.folds ({self.folds}), not {self.fold}",
        )
        require(0 < self.balance_beta < 1, f"--data.balance-beta must be between 0 and 1, not {self.balance_beta}")
        for name in ("mean", "std"):
            given = getattr(self, name)
            require(
                given is None or len(given) == self.channels,
                f"--data.{name} needs a number for each of --data.channels {self.channels}, not {len(given or ())}",
            )
        require(self.std is None or min(self.std) > 0, f"--data.std must be above 0 in every channel, not {self.std}")
        refuse_other_scale(self.mean or (), self.std or (), "--data.")
        require(
            self.eval_crop is None or SMALLEST_CROP <= self.eval_crop <= 1,
            f"--data.eval-crop must be from {SMALLEST_CROP} to 1, not {self.eval_crop}",
        )
        if self.crop_scale is not None:
            low, high = self.crop_scale
            require(0 < low <= high <= 1, f"--data.crop-scale needs 0 < MIN <= MAX <= 1, not {low} {high}")

    @property
    def side(self) -> ImageSize:
        """image_size, or USUAL_SIDE where nobody says one."""
        return self.image_size or USUAL_SIDE


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
