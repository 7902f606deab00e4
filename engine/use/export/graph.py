"""A network as one graph from raw pictures to probabilities, of plain arithmetic that every exporter knows.

The resize is two products with matrices of filter weights, which the graph makes from the picture's size: the same
filters as Pillow's (a triangle, or the cubic of Keys 1981 with a = -1/2, as wide as the shrinking asks for), and only
the rows and columns of the centre crop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.config.pixels.image_size import sides
from engine.data.graph.crops import resized_shorter_side
from engine.data.graph.filters import filter_weights
from engine.data.preprocessing import Preprocessing


class Prepare(nn.Module):
    """images uint8 [N, H, W, 3] of any size -> float32 [N, C, height, width], as the evaluation sees them."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.height, self.width = sides(preprocessing.image_size)
        self.box = [resized_shorter_side(side, preprocessing.eval_crop) for side in (self.height, self.width)]
        self.grey, self.whole = preprocessing.channels == 1, preprocessing.bits == 8
        self.interpolation = preprocessing.interpolation
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, 255 * values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (self.pixels(images) - self.mean) / self.std

    def pixels(self, images: Tensor) -> Tensor:
        """float32 [N, C, height, width] of grey levels, 0 to 255: whole ones unless 16 bits are kept."""
        planes = images.permute(0, 3, 1, 2).float()
        if self.grey:  # as Pillow rounds it
            red, green, blue = planes.split(1, dim=1)
            planes = torch.floor((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536)
        height = torch.full((), images.shape[1], dtype=torch.int64, device=images.device)
        width = torch.full((), images.shape[2], dtype=torch.int64, device=images.device)
        tall = height * self.box[1] <= width * self.box[0]  # then the height is resized to the box's
        box = torch.where(tall, *(torch.full_like(height, side) for side in self.box))
        by = torch.where(tall, height, width)
        across = self.filter(width, box, by, self.width, torch.arange(images.shape[2], device=images.device))
        down = self.filter(height, box, by, self.height, torch.arange(images.shape[1], device=images.device))
        resized = torch.matmul(down, torch.matmul(planes, across.t()))
        return (resized.round() if self.whole else resized).clamp(0, 255)

    def filter(self, length: Tensor, box: Tensor, by: Tensor, crop: int, places: Tensor) -> Tensor:
        """[crop, length] weights of each source pixel of a side in each pixel of the crop.

        length   int64 [], pixels of this side
        box, by  int64 [], the resize multiplies by their quotient: of the side that is the shorter one for the crop
        crop     pixels of this side of the crop
        places   int64 [length], 0, 1, 2, …
        """
        resized = torch.div(box * length, by, rounding_mode="floor")
        start = ((resized - crop).float() / 2).round()  # to even, as torchvision's CenterCrop
        scale = length.float() / resized.float()
        target = torch.arange(crop, device=places.device).float()
        centres = (target + start + 0.5) * scale
        return filter_weights(centres, scale.clamp(min=1.0), places.float(), self.interpolation)


class RawGraph(nn.Module):
    """images uint8 [N, H, W, 3], RGB of one size -> (probabilities, logits), float32 [N, classes] each.

    half  weights and activations of the network in fp16; preparation and softmax stay in fp32
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, half: bool = False) -> None:
        super().__init__()
        self.prepare = Prepare(preprocessing)
        self.network = network.half() if half else network.float()
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.prepare(images).to(self.dtype)).float()
        return logits.softmax(dim=1), logits
