"""Batches of a small set that lies on the GPU whole: chosen, cut, resized and mirrored there, nothing is copied to it.

MNIST is 52 MiB and CIFAR-10 176 MiB of uint8, less than DALI's own memory. With all images of one size the windows of a
batch are two small matrices an image, one for its rows and one for its columns, so a batch is two matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from engine.config.pixels.image_size import sides
from engine.data.graph import crops
from engine.data.graph.filters import filter_weights
from engine.data.loader import Batch, Loader, Position
from engine.data.sending import sent
from engine.data.sources.source import Split

MOST = 512 << 20
"""Bytes of a split that are kept on a GPU: what DALI's threads and pool hold there in its place."""


def fits_on_device(split: Split) -> bool:
    """Whether a split is an array of images of one size, and not too large."""
    arrays = split.arrays
    return arrays is not None and arrays.dtype == np.uint8 and arrays.ndim in (3, 4) and arrays.nbytes <= MOST


class DeviceLoader(Loader):
    """See Loader; for splits of which `fits_on_device` is true, on CUDA devices, in DALI's place.

    Pixels are Pillow's to 2 grey levels at most and 0.2 in the mean: where a value lies between two levels.
    """

    backend = "torch"

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        wanted = self.preprocessing
        assert self.data.arrays is not None
        pixels = self.data.arrays
        if pixels.ndim == 4 and wanted.channels == 1:
            pixels = np.stack([self.data.pixels(index, 1)[:, :, 0] for index in range(len(pixels))])
        planes = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
        planes = planes[:, None] if planes.ndim == 3 else planes.permute(0, 3, 1, 2).contiguous()
        self._pixels = planes.to(self.device)  # uint8 [N, C, H, W], C = 1 of grey images whatever they are shown as
        normal = torch.tensor([wanted.mean, wanted.std], dtype=torch.float32) * 255
        self._normal = normal.view(2, 1, -1, 1, 1).to(self.device)

    def close(self) -> None:
        """Free the images; harmless when repeated."""
        self._iterator_number += 1
        self._pixels = self._pixels[:0].clone()

    def avoid(self, crashes: Mapping[str, str]) -> None:
        """Nothing: no decoder sees its images."""

    def _batch(self, position: Position) -> Batch:
        request = self.schedule.request(position)
        indices, draws = request.share.indices, request.draws
        count, size = len(indices), np.array([self._pixels.shape[2:]] * len(indices))
        if self.train:
            start, shape = self.window(size, draws)
            mirrored = (draws[:, 4] < 0.5) & self.flip
            inside = np.stack([start, start + shape], axis=2)
        else:
            wanted = self.preprocessing
            region = crops.evaluation_region(size, wanted.image_size, wanted.eval_crop)
            start, shape = region[:, :2], region[:, 2:] - region[:, :2]
            mirrored = np.zeros(count, dtype=bool)
            inside = np.stack([np.zeros_like(size), size], axis=2)
        windows = np.concatenate([start[:, :, None], shape[:, :, None], inside], axis=2).astype(np.float32)
        chosen, axes, turned = (sent(torch.from_numpy(one), self.device) for one in (indices, windows, mirrored))
        images = self._resized(self._pixels[chosen], axes, turned)
        if self.augmentation is None:
            images = images.sub_(self._normal[0]).div_(self._normal[1])
            images = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        else:
            images = images.to(torch.uint8)
        return self._assemble(request, images, indices, np.ones(count, dtype=bool), {})

    def _resized(self, images: Tensor, axes: Tensor, mirrored: Tensor) -> Tensor:
        """float32 [m, C, height, width] of whole grey levels.

        images    uint8 [m, C or 1, H, W]
        axes      float32 [m, 2, 4], of rows and columns: start and length of the window, first and last pixel (not
                  included) that it may look at
        mirrored  bool [m]
        """
        height, width = sides(self.preprocessing.image_size)
        filtered = self.preprocessing.interpolation
        rows = window_weights(axes[:, 0], images.shape[2], height, filtered)
        columns = window_weights(axes[:, 1], images.shape[3], width, filtered)
        columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
        half = (images.float() @ columns[:, None].transpose(2, 3)).round_().clamp_(0, 255)  # in 8 bits, as Pillow does
        made = (rows[:, None] @ half).round_().clamp_(0, 255)
        return made.expand(-1, self.preprocessing.channels, -1, -1).contiguous()


def window_weights(axis: Tensor, source: int, wanted: int, interpolation: str) -> Tensor:
    """Matrices that resize a window of `source` pixels to `wanted` with an antialiasing filter.

    axis     float32 [m, 4]: start and length of the window, first and last pixel (not included) that it may look at
    returns  float32 [m, wanted, source], whose rows add up to 1
    """
    start, length, first, last = axis.unsqueeze(2).unbind(1)  # [m, 1] each
    scale = length / wanted
    centres = start + (torch.arange(wanted, device=axis.device) + 0.5) * scale
    places = torch.arange(source, device=axis.device).float()
    inside = (places >= first) & (places < last)
    return filter_weights(centres, scale.clamp(min=1)[:, :, None], places, interpolation, inside[:, None])
