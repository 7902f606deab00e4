"""Which part of an image the network sees, for both backends: plain arithmetic on sizes, no pixels.

Training cuts a random window of whole pixels and resizes it. Evaluation resizes the shorter side and takes the
centre; as one resize from a region of the source it needs a single pass and gives the same pixels.
"""

import numpy as np

from engine.config.pixels.image_size import ImageSize, sides

NARROW, WIDE = 3 / 4, 4 / 3
"""Aspect ratios of training crops over that of what the network sees (Szegedy et al. 2014, arXiv:1409.4842, sec. 6)."""

AREA_CELLS = 64
"""Resolution of the area's distribution."""


def training_window(
    sizes: np.ndarray, draws: np.ndarray, scale: tuple[float, float], image_size: ImageSize = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Random-resized crop in closed form: one window an image, no rejection.

    sizes    int [m, 2], height and width
    draws    [m, 4 or more] uniform in [0, 1): area, aspect, y, x
    scale    smallest and largest share of the area
    image_size  what the window is resized to: its aspect ratio is what windows have on average
    returns  start (y, x) and shape (height, width), int32 [m, 2] each, inside the image

    Areas and aspect ratios are distributed as by drawing both (uniform, log-uniform) until the window fits, which is
    what torchvision's RandomResizedCrop does: large areas fit fewer ratios and are rarer for it. Where no ratio fits
    any area (long panoramas), the area is uniform and the window is the largest of the nearest ratio.
    """
    height, width = sizes.astype(np.float64).T
    area_draw, aspect_draw, y_draw, x_draw = draws[:, :4].astype(np.float64).T
    wanted = aspect_of(image_size)
    share = _area_share(width / height / wanted, area_draw, scale)
    low, high = (wanted * ratio for ratio in _fitting_ratios(width / height / wanted, share))
    aspect = low * (high / low) ** aspect_draw
    crop_width = np.minimum(np.sqrt(share * height * width * aspect), np.minimum(width, height * aspect))
    shape = np.stack([crop_width / aspect, crop_width], axis=1)
    shape = np.clip(np.rint(shape), 1, sizes).astype(np.int32)
    room = sizes - shape
    start = np.minimum(np.floor(np.stack([y_draw, x_draw], axis=1) * (room + 1)), room).astype(np.int32)
    return start, shape


def fixed_window(
    sizes: np.ndarray, draws: np.ndarray, share: float, image_size: ImageSize = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A square of `share` of the shorter side anywhere in the image: "resize the shorter side, then crop at random".

    sizes, draws, returns  as in `training_window`, of whose draws y and x are read
    image_size             where it is not square, the largest window of its aspect ratio is what the share is of
    """
    wanted = aspect_of(image_size)
    height, width = sizes.astype(np.float64).T
    largest = np.stack([np.minimum(height, width / wanted), np.minimum(width, height * wanted)], axis=1)
    shape = np.clip(np.rint(largest * share), 1, sizes).astype(np.int32)
    room = sizes - shape
    start = np.minimum(np.floor(draws[:, 2:4].astype(np.float64) * (room + 1)), room).astype(np.int32)
    return start, shape


def _fitting_ratios(image_ratio: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest aspect ratio with which a window of this share of the area fits into the image."""
    return np.clip(image_ratio * share, NARROW, WIDE), np.clip(image_ratio / share, NARROW, WIDE)


def _area_share(image_ratio: np.ndarray, draw: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Share of the area, by inverting its distribution: the density is the log-range of ratios that fit."""
    areas = np.linspace(*scale, AREA_CELLS + 1)
    low, high = _fitting_ratios(image_ratio[:, None], areas[None])
    density = np.log(high / low)
    density[density.max(axis=1) == 0] = 1
    mass = np.cumsum((density[:, 1:] + density[:, :-1]) / 2, axis=1)
    mass = np.pad(mass, ((0, 0), (1, 0))) / mass[:, -1:]
    cell = np.clip((mass <= draw[:, None]).sum(axis=1) - 1, 0, AREA_CELLS - 1)
    row = np.arange(len(draw))
    left, right = mass[row, cell], mass[row, cell + 1]
    inside = np.divide(draw - left, right - left, out=np.zeros_like(draw), where=right > left)
    return scale[0] + (scale[1] - scale[0]) * (cell + inside) / AREA_CELLS


def aspect_of(image_size: ImageSize) -> float:
    """Width over height."""
    height, width = sides(image_size)
    return width / height


def resized_shorter_side(image_size: int, eval_crop: float) -> int:
    """Pixels of the shorter side before the centre crop: 256 for a crop of 224 and 0.875.

    Rounded down, as timm does (timm.data.transforms_factory); a share that is itself a quotient of two whole sizes, as
    torchvision's are, gives its divisor back in spite of its last bit.
    """
    return int(image_size / eval_crop + 1e-6)


def resized_sizes(sizes: np.ndarray, image_size: ImageSize, eval_crop: float) -> np.ndarray:
    """Height and width that images are resized to before the centre crop: the least that cover the crop over its share.

    sizes    float64 [m, 2], height and width
    returns  float64 [m, 2] of whole numbers; for square crops that of resizing the shorter side
    """
    box = np.array([resized_shorter_side(side, eval_crop) for side in sides(image_size)], np.float64)
    tight = np.argmax(box / sizes, axis=1)[:, None]  # the side that is resized to the box's, the other is longer
    resized = np.floor(box[tight] * sizes / np.take_along_axis(sizes, tight, axis=1))
    return np.maximum(resized, box)


def evaluation_region(sizes: np.ndarray, image_size: ImageSize, eval_crop: float) -> np.ndarray:
    """The region of the source that "resize the shorter side, then crop the centre" shows.

    sizes    int [m, 2], height and width
    returns  float32 [m, 4] in source pixels: top, left, bottom, right; resized to image_size it gives the pixels of
             torchvision's Resize(resized_shorter_side) and CenterCrop(image_size), whose roundings it follows
    """
    sizes, wanted = sizes.astype(np.float64), np.array(sides(image_size))
    resized = resized_sizes(sizes, image_size, eval_crop)
    start = np.rint((resized - wanted) / 2)
    return np.concatenate([start * sizes / resized, (start + wanted) * sizes / resized], axis=1).astype(np.float32)
