"""Which part of an image the network sees, for both backends: plain arithmetic on sizes, no pixels.

Training cuts a random window of whole pixels and resizes it. Evaluation resizes the shorter side and takes the
centre; as one resize from a region of the source it needs a single pass and gives the same pixels.
"""

import numpy as np

NARROW, WIDE = 3 / 4, 4 / 3
"""Aspect ratios of training crops (Szegedy et al. 2014, arXiv:1409.4842, section 6)."""


def training_window(sizes: np.ndarray, draws: np.ndarray, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Random-resized crop in closed form: one window an image, no rejection.

    sizes    int [m, 2], height and width
    draws    [m, 4 or more] uniform in [0, 1): area, aspect, y, x
    scale    smallest and largest share of the area
    returns  start (y, x) and shape (height, width), int32 [m, 2] each, inside the image

    The area is uniform in `scale`. The aspect ratio is log-uniform over the part of [3/4, 4/3] with which a window of
    that area fits; where none fits (long panoramas), the nearest ratio and the largest window that has it.
    """
    height, width = sizes.astype(np.float64).T
    area_draw, aspect_draw, y_draw, x_draw = draws[:, :4].astype(np.float64).T
    share = scale[0] + (scale[1] - scale[0]) * area_draw
    low = np.clip(width / height * share, NARROW, WIDE)
    high = np.clip(width / height / share, NARROW, WIDE)
    aspect = low * (high / low) ** aspect_draw
    crop_width = np.minimum(np.sqrt(share * height * width * aspect), np.minimum(width, height * aspect))
    shape = np.stack([crop_width / aspect, crop_width], axis=1)
    shape = np.clip(np.rint(shape), 1, sizes).astype(np.int32)
    room = sizes - shape
    start = np.minimum(np.floor(np.stack([y_draw, x_draw], axis=1) * (room + 1)), room).astype(np.int32)
    return start, shape


def resized_shorter_side(image_size: int, eval_crop: float) -> int:
    """Pixels of the shorter side before the centre crop: 256 for a crop of 224 and 0.875."""
    return round(image_size / eval_crop)


def evaluation_region(sizes: np.ndarray, image_size: int, eval_crop: float) -> np.ndarray:
    """The region of the source that "resize the shorter side, then crop the centre" shows.

    sizes    int [m, 2], height and width
    returns  float32 [m, 4] in source pixels: top, left, bottom, right; resized to image_size² it gives the pixels of
             torchvision's Resize(resized_shorter_side) and CenterCrop(image_size), whose roundings it follows
    """
    sizes = sizes.astype(np.float64)
    resized = np.floor(resized_shorter_side(image_size, eval_crop) * sizes / sizes.min(axis=1, keepdims=True))
    start = np.rint((resized - image_size) / 2)
    return np.concatenate([start * sizes / resized, (start + image_size) * sizes / resized], axis=1).astype(np.float32)
