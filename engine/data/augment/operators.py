"""Changes of pixels, a batch at a time, each image by its own magnitude: torchvision v2's definitions on uint8 tensors.

Every operator takes uint8 [k, 3, H, W] and a float32 [k] of magnitudes on the same device, waits for no device, and
returns uint8 of the same shape. The same code runs on a CPU and on a GPU, whichever library decoded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

Operator = Callable[[Tensor, Tensor], Tensor]
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey picture (ITU-R BT.601, as torchvision rounds it)."""
BLUR_SHARE = 0.1
"""Side of the blur's window over the shorter side of the image (Chen et al. 2020, arXiv:2002.05709, appendix A)."""


def brightness(images: Tensor, by: Tensor) -> Tensor:
    """Times 1 + by."""
    return _to_pixels(images.float().mul_(_each(1 + by)))


def contrast(images: Tensor, by: Tensor) -> Tensor:
    """1 + by times as far from the mean grey of the image."""
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean, 1 + by)


def saturation(images: Tensor, by: Tensor) -> Tensor:
    """1 + by times as far from the pixel's own grey."""
    return _blend(images, _grey(images), 1 + by)


def grayscale(images: Tensor, by: Tensor) -> Tensor:
    """Grey in all three channels, whatever `by` is."""
    return functional.rgb_to_grayscale(images, num_output_channels=3)


def hue(images: Tensor, by: Tensor) -> Tensor:
    """The hue turned by `by` of a full circle, saturation and value kept (HSV of Smith 1978)."""
    red, green, blue = (images.float() / 255).unbind(1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = value - low
    grey = spread == 0
    safe = torch.where(grey, torch.ones_like(spread), spread)
    turned = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = torch.where(grey, torch.zeros_like(turned), turned)
    turned = (turned + 6 * by.view(-1, 1, 1)) % 6

    def channel(offset: float) -> Tensor:
        place = (offset + turned) % 6
        return value - spread * torch.minimum(place, 4 - place).clamp(0, 1)

    changed = torch.stack([channel(5), channel(3), channel(1)], dim=1)
    return (changed * 255).round_().clamp_(0, 255).to(torch.uint8)


def sharpness(images: Tensor, by: Tensor) -> Tensor:
    """1 + by times as far from a 3 × 3 mean in which the middle counts five times; the outermost pixels stay."""
    if min(images.shape[2:]) <= 2:
        return images
    pixels = images.float()
    inner = pixels[:, :, 1:-1, 1:-1]
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = smooth.add_(inner, alpha=4).div_(13).round_()
    inner.mul_(_each(1 + by)).add_(smooth.mul_(_each(-by)))
    return _to_pixels(pixels)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest `bits` bits of each value."""
    mask = 256 - torch.pow(2, 8 - bits.round())
    return images & _each(mask).to(torch.uint8)


def solarize(images: Tensor, share: Tensor) -> Tensor:
    """Values from `share` of white on are inverted."""
    bound = torch.ceil(255 * share)
    turned = images >= _each(bound.clamp(0, 255)).to(torch.uint8)
    return images ^ turned.to(torch.uint8).mul_(_each((bound < 256) * 255).to(torch.uint8))  # 255 - v is v ^ 255


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Values below 128 get `added` more (TensorFlow TPU's AutoAugment v0)."""
    more = _to_pixels(images.float().add_(_each(added)))
    return images + (more - images).mul_((images < 128).to(torch.uint8))  # modulo 256, as uint8 is


def auto_contrast(images: Tensor, by: Tensor) -> Tensor:
    """Each channel stretched to 0 to 255."""
    return functional.autocontrast(images)


def equalize(images: Tensor, by: Tensor) -> Tensor:
    """Each channel's histogram made flat."""
    if images.is_cuda:
        return functional.equalize(images)
    planes = [Image.fromarray(plane) for plane in images.flatten(0, 1).numpy()]  # Pillow's is the same and faster
    return torch.from_numpy(np.stack([np.asarray(ImageOps.equalize(plane)) for plane in planes])).view(images.shape)


def invert(images: Tensor, by: Tensor) -> Tensor:
    """255 less each value."""
    return 255 - images


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian of `sigma` pixels at BLUR_SHARE of the shorter side, reflected at the edges."""
    radius = blur_radius(*images.shape[2:])
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)  # [k, 2 radius + 1]
    count, channels, height, width = images.shape
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None, None]
    pixels = images.float().reshape(1, count * channels, height, width)
    pixels = F.pad(pixels, (radius, radius, radius, radius), mode="reflect")
    pixels = F.conv2d(pixels, kernel, groups=count * channels)
    pixels = F.conv2d(pixels, kernel.transpose(2, 3), groups=count * channels)
    return pixels.reshape(images.shape).round_().clamp_(0, 255).to(torch.uint8)


def blur_radius(height: int, width: int) -> int:
    """Pixels to each side of the blur's window."""
    return min(max(1, int(BLUR_SHARE * min(height, width)) // 2), min(height, width) - 1)


def vertical_flip(images: Tensor, by: Tensor) -> Tensor:
    """Upside down."""
    return images.flip(2)


def shear_x(images: Tensor, by: Tensor) -> Tensor:
    """Rows moved left by `by` times their distance from the top."""
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return warp(images, [one, by, by * images.shape[2] / 2, zero, one, zero])


def shear_y(images: Tensor, by: Tensor) -> Tensor:
    """Columns moved up by `by` times their distance from the left."""
    zero, one = torch.zeros_like(by), torch.ones_like(by)
    return warp(images, [one, zero, zero, by, one, by * images.shape[3] / 2])


def translate_x(images: Tensor, share: Tensor) -> Tensor:
    """Moved right by `share` of the width, in whole pixels."""
    return _moved(images, torch.trunc(share * images.shape[3]), 3)


def translate_y(images: Tensor, share: Tensor) -> Tensor:
    """Moved down by `share` of the height, in whole pixels."""
    return _moved(images, torch.trunc(share * images.shape[2]), 2)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turned about the centre, against the clock."""
    angle, zero = torch.deg2rad(degrees), torch.zeros_like(degrees)
    return warp(images, [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero])


def warp(images: Tensor, matrix: list[Tensor]) -> Tensor:
    """The nearest pixel at M·(x, y, 1) of the source, in pixels from the centre; black outside.

    matrix  six float32 [k]: the two rows of M
    """
    count, _, height, width = images.shape
    x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
    xx, xy, x1, yx, yy, y1 = (entry.view(-1, 1, 1) for entry in matrix)
    column = (xx * x + xy * y[:, None]).add_(x1 + (width - 1) / 2).round_().clamp_(-1, width)
    row = (yx * x + yy * y[:, None]).add_(y1 + (height - 1) / 2).round_().clamp_(-1, height)
    flat = row.add_(1).int().mul_(width + 2).add_(column.add_(1).int()).long().view(count, 1, -1)
    framed = F.pad(images, (1, 1, 1, 1)).flatten(2)  # by black, which all that lies outside is taken from
    return framed.gather(2, flat.expand(-1, 3, -1)).view(images.shape)


OPERATORS: dict[str, Operator] = {
    "shear-x": shear_x,
    "shear-y": shear_y,
    "translate-x": translate_x,
    "translate-y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "solarize-add": solarize_add,
    "auto-contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "hue": hue,
    "grayscale": grayscale,
    "blur": blur,
    "vertical-flip": vertical_flip,
}
"""By name, in the order of their numbers: a policy writes number + 1 where an operator is applied, 0 for none."""
NUMBERS = {name: number + 1 for number, name in enumerate(OPERATORS)}


def _each(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def _moved(images: Tensor, by: Tensor, axis: int) -> Tensor:
    """Each image by so many whole pixels along axis 2 or 3, over black; by copies where `by` need not be waited for."""
    if images.is_cuda:
        zero, one = torch.zeros_like(by), torch.ones_like(by)
        return warp(images, [one, zero, -by if axis == 3 else zero, zero, one, -by if axis == 2 else zero])
    made = torch.zeros_like(images)
    for image, into, pixels in zip(images, made, by.int().tolist(), strict=True):
        left = image.shape[axis - 1] - abs(pixels)
        if left > 0:
            into.narrow(axis - 1, max(0, pixels), left).copy_(image.narrow(axis - 1, max(0, -pixels), left))
    return made


def _grey(images: Tensor) -> Tensor:
    """float32 [k, 1, H, W] of whole grey levels."""
    red, green, blue = images.float().split(1, dim=1)
    return red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).floor_()


def _blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return _to_pixels(images.float().mul_(_each(share)).add_(other * _each(1 - share)))


def _to_pixels(values: Tensor) -> Tensor:
    """uint8 from float32, which is overwritten."""
    return values.clamp_(0, 255).to(torch.uint8)
