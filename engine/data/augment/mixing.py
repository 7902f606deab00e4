"""Mixtures of two images with the labels of both: mixup and CutMix.

Partners are neighbours in the epoch's random order: images 2i and 2i + 1 of a global batch. As ranks take contiguous
shares, both are on one rank wherever a share's size is even, so the mixture is the same with any number of ranks, and
nothing is sent between them. An image without a partner in its share stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.sending import sent

DRAWS = 5
"""Uniform numbers that a mixture reads: whether, which kind, its share, y, x."""


@dataclass(frozen=True)
class Mixtures:
    """What becomes of each image of a share."""

    own: np.ndarray
    """float32 [m], share of an image's own pixels and label; 1 is unmixed."""
    box: np.ndarray
    """int64 [m, 4], rows and columns (top, bottom, left, right) that come from the partner; empty without CutMix."""

    @property
    def any(self) -> bool:
        """Whether an image is mixed."""
        return bool((self.own < 1).any())


def beta(draws: np.ndarray, alpha: float) -> np.ndarray:
    """Beta(α, α) from uniform numbers, by its quantile function."""
    from scipy.special import betaincinv  # comes with scikit-learn

    return betaincinv(alpha, alpha, draws)


def mixtures(
    draws: np.ndarray, count: int, mixup: float, cutmix: float, share: float, height: int, width: int
) -> Mixtures:
    """How the images of a share are mixed.

    draws  float64 [m, DRAWS] in [0, 1)
    count  images of the share that are no fillers; of them an even number is mixed
    """
    size = len(draws)
    mixed = (draws[:, 0] < share) & (np.arange(size) < count // 2 * 2)
    cut = mixed & (draws[:, 1] < (cutmix > 0) / ((cutmix > 0) + (mixup > 0)))
    own = np.ones(size)
    for chosen, alpha in ((mixed & ~cut, mixup), (cut, cutmix)):
        if chosen.any():
            own[chosen] = beta(draws[chosen, 2], alpha)
    box = np.zeros((size, 4), np.int64)
    if cut.any():
        side = np.sqrt(1 - own[cut])
        for at, (length, draw) in enumerate(((height, draws[cut, 3]), (width, draws[cut, 4]))):
            half, middle = (side * length).astype(np.int64) // 2, (draw * length).astype(np.int64)
            box[cut, 2 * at] = np.clip(middle - half, 0, length)
            box[cut, 2 * at + 1] = np.clip(middle + half, 0, length)
        area = (box[cut, 1] - box[cut, 0]) * (box[cut, 3] - box[cut, 2])
        own[cut] = 1 - area / (height * width)  # of what is inside the image, as the authors' code corrects it
    return Mixtures(own.astype(np.float32), box)


def mix_images(images: Tensor, how: Mixtures) -> Tensor:
    """The mixtures of float [m, C, H, W]."""
    partner = partners(images)
    own, box = (sent(torch.from_numpy(one), images.device) for one in (how.own, how.box))
    inside = rectangles(box, images.shape[2], images.shape[3])
    cut = (box[:, 1] > box[:, 0]).view(-1, 1, 1, 1)
    share = own.view(-1, 1, 1, 1).to(images.dtype)
    blended = images * share + partner * (1 - share)
    return torch.where(cut, torch.where(inside, partner, images), blended)


def soft_labels(labels: Tensor, how: Mixtures, classes: int) -> Tensor:
    """float32 [m, classes] from int64 [m]: each image's own class and its partner's, by their shares."""
    own = sent(torch.from_numpy(how.own), labels.device)[:, None]
    hot = F.one_hot(labels, classes).float()
    return hot * own + partners(hot) * (1 - own)


def partners(values: Tensor) -> Tensor:
    """Neighbours swapped along the first axis; the last of an odd number is its own."""
    even = len(values) // 2 * 2
    swapped = values[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.cat([swapped, values[even:]]) if even < len(values) else swapped


def rectangles(box: Tensor, height: int, width: int) -> Tensor:
    """bool [m, 1, H, W], inside (top, bottom, left, right) of int64 [m, 4]."""
    top, bottom, left, right = (box[:, at].view(-1, 1, 1) for at in range(4))
    rows, columns = torch.arange(height, device=box.device)[:, None], torch.arange(width, device=box.device)
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))[:, None]
