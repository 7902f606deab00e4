"""Images of 16 bits a colour: whether there are any, and how Pillow's and torchvision's decoders give them.

Pillow keeps the 16 bits of grey images alone, and torchvision's PNG decoder those of coloured ones too. Coloured TIFF
of 16 bits is read as 8.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from engine.data.bad_images import decode_whole, look
from engine.data.preprocessing import GREY
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import Split

LOOKED_AT = 64
"""Images, evenly spaced, by which a run decides."""
PNG = b"\x89PNG\r\n\x1a\n"
DEPTH_AT = 24
"""Byte of a PNG file that says its bits a colour (ISO/IEC 15948, section 11.2.2)."""


def is_deep_png(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits a colour."""
    return data[: len(PNG)] == PNG and len(data) > DEPTH_AT and data[DEPTH_AT] == 16


def is_deep(data: bytes) -> bool:
    """Whether an image has more than 8 bits a colour; no for what cannot be read."""
    if data[: len(PNG)] == PNG:
        return is_deep_png(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.mode.startswith("I")
    except Exception:  # Pillow's format plugins raise nearly anything; whoever decodes it tells
        return False


def bits_of(split: Split) -> int:
    """16 where one of LOOKED_AT images has them, else 8: the same whoever looks."""
    if not split.encoded or not len(split):
        return 8
    for index in np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(np.int64)).tolist():
        try:
            if is_deep(split.read(index)):
                return 16
        except Unreadable:
            continue
    return 8


def decode_sixteen(data: bytes, channels: int) -> np.ndarray:
    """uint16 [H, W, channels], where white is 65535; images of 8 bits are 257 times as much.

    Raises Unreadable as `decode`.
    """
    if is_deep_png(data):
        pixels = _png(data)
    else:
        decoded = decode_whole(data, channels)
        pixels = decoded if isinstance(decoded, np.ndarray) else np.asarray(decoded, np.uint16) * 257
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return np.rint(pixels.astype(np.float32) @ np.array(GREY, np.float32))[:, :, None].astype(np.uint16)
    return pixels.repeat(3, axis=2)


def _png(data: bytes) -> np.ndarray:
    """uint16 [H, W, 1 or 3], transparency dropped."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    look(data)  # whether it is whole: torchvision's decoder does not look
    try:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        decoded = decode_image(raw, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    except RuntimeError as error:
        raise Unreadable(str(error).splitlines()[0]) from None
    colours = 1 if len(decoded) < 3 else 3
    return decoded[:colours].permute(1, 2, 0).numpy().astype(np.uint16)
