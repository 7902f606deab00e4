"""One look at each image: what it is, whether it decodes, a hash of its content and a small grey copy.

Pillow decodes, JPEGs at an eighth to a half of their size where that suffices; reading and decoding leave Python's
lock, so threads do.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from engine.data.bad_images import decode, look
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import Split

SIDE = 64
"""Pixels a side of the grey copies."""
CHUNK = 32
"""Images that one task of a thread takes."""


@dataclass(frozen=True)
class Seen:
    """What one image is."""

    index: int
    """Of its split."""
    digest: bytes = b""
    """Of the file, or of the pixels of an image that is no file; empty where it could not be read."""
    width: int = 0
    height: int = 0
    mode: str = ""
    """Pillow's name of its pixels: L, RGB, CMYK, I;16 …"""
    format: str = ""
    small: np.ndarray | None = None
    """uint8 [SIDE, SIDE], the whole image squeezed into a grey square; None where it does not decode."""
    wrong: str = ""
    """Why it cannot be used."""


def look_at(split: Split, indices: Sequence[int], threads: int, small: bool = True) -> list[Seen]:
    """A look at each of these images, in their order.

    small  with the grey copies; without, pixels are not decoded and a broken image may pass
    """
    chunks = [indices[begin : begin + CHUNK] for begin in range(0, len(indices), CHUNK)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = pool.map(lambda chunk: [_seen(split, int(index), small) for index in chunk], chunks)
        return [one for part in found for one in part]


def _seen(split: Split, index: int, small: bool) -> Seen:
    if split.arrays is not None:
        pixels = split.arrays[index]
        digest = _digest(np.ascontiguousarray(pixels).tobytes())
        grey = _squeezed(Image.fromarray(pixels)) if small else None
        height, width = pixels.shape[:2]
        return Seen(index, digest, width, height, "L" if pixels.ndim == 2 else "RGB", "array", grey)
    try:
        data = split.read(index)
    except Unreadable as error:
        return Seen(index, wrong=str(error))
    digest = _digest(data)
    try:
        header = look(data)
        with Image.open(io.BytesIO(data)) as image:
            mode, kind = image.mode, image.format or ""
            grey = _squeezed(_decoded(image, data)) if small else None
    except Unreadable as error:
        return Seen(index, digest, wrong=str(error))
    except Exception as error:  # Pillow's decoders raise nearly anything
        return Seen(index, digest, wrong=str(error) or type(error).__name__)
    return Seen(index, digest, header.width, header.height, mode, kind, grey)


def _decoded(image: Image.Image, data: bytes) -> Image.Image:
    """Upright; a JPEG at a fraction of its size, which is at least twice SIDE."""
    if image.format not in ("JPEG", "MPO"):
        return decode(data)
    image.draft("L", (2 * SIDE, 2 * SIDE))
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF; the pixels are fine
        return image


def _squeezed(image: Image.Image) -> np.ndarray:
    grey = image.convert("L")
    shrinks = min(grey.size) >= SIDE
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
