"""What to do about files that are not the images they claim to be.

Pillow is the referee for both backends. A file's header is looked at once, before any decoder sees the file: that
yields the size that crops are cut from, and refuses what would hurt (a header that asks for gigabytes, a cut file whose
rest would decode to grey). Whatever the fast decoder still fails on is found by bisection, since its error names
no file, and is decoded by Pillow from then on if Pillow can.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from engine.data.sources.reading import Unreadable
from engine.data.sources.source import Split

MAX_PIXELS = 178_956_970
"""Pixels above which an image is refused: Pillow's limit for a decompression bomb, 512 MiB of RGB."""

TOO_LARGE = f"its header declares more than {MAX_PIXELS} pixels"

ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT = 0x0112, 256, 257
"""Tags of EXIF and TIFF."""

END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""How a whole file ends, for the formats that decoders read gladly when they are cut."""

DALI_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
"""Formats, by Pillow's names, that DALI decodes; of WebP only the simple file format. Their ends are checked first.

DALI 2.4 decodes JPEG 2000, TIFF, BMP and PPM as well, but nobody has looked whether such a file is whole: a cut
JPEG 2000 beside a small JPEG in one batch crashes its library (SIGSEGV), and TIFF's grey with alpha, CIELAB and
floating-point pixels come out as other colours than Pillow's. Pillow decodes them.
"""


@dataclass(frozen=True)
class BadImage:
    """A file that cannot be used, and why."""

    path: str
    reason: str
    transient: bool = False
    """Whether it was not even read: a disk may give it another time."""


class Header(NamedTuple):
    """What a look at a file's header tells."""

    height: int
    width: int
    fast: bool
    """Whether DALI decodes files of this kind."""


def look(data: bytes) -> Header:
    """What the header alone tells; 20 to 50 microseconds for a JPEG, twice that with EXIF.

    Raises Unreadable for data that no image format claims, an image of more than MAX_PIXELS, and a cut file. Only a
    JPEG or PNG without its end mark costs a full decode, to tell a cut file from one with something appended.
    """
    with _opened(data) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # its size is upright or not, by Pillow's version; its tags never are
            width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]
        if _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        if not _has_its_end(data, image.format):
            _load(image)
        extended_webp = image.format == "WEBP" and data[12:16] == b"VP8X"
        return Header(height, width, fast=image.format in DALI_FORMATS and not extended_webp)


def _has_its_end(data: bytes, kind: str | None) -> bool:
    """Whether nothing is cut off a file of a format that DALI decodes; of others Pillow's decoder says it."""
    if kind == "WEBP":  # RIFF: the size of what follows the first eight bytes
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return data.endswith(END_MARKS.get(kind or "", b""))


def decode(data: bytes, channels: int = 3) -> Image.Image:
    """The image as RGB, or as grey where there is 1 channel, EXIF orientation applied, transparency dropped, 16 bits
    scaled to 8.

    Raises Unreadable for what Pillow cannot decode, and for floating-point pixels, which have no agreed white.
    """
    return _eight_bit_image(_upright(data), channels)


def decode_whole(data: bytes, channels: int = 3) -> Image.Image | np.ndarray:
    """uint16 [H, W] of an image that Pillow reads as grey of more than 8 bits; any other as `decode`, which raises."""
    upright = _upright(data)
    if upright.mode.startswith("I"):
        return np.asarray(upright).clip(0, 65535).astype(np.uint16)
    return _eight_bit_image(upright, channels)


def _eight_bit_image(upright: Image.Image, channels: int) -> Image.Image:
    if upright.mode.startswith("I"):
        upright = Image.fromarray(_eight_bits(np.asarray(upright)))
    rgb = _as_rgb(upright)
    return rgb if channels == 3 else rgb.convert("L")


def _upright(data: bytes) -> Image.Image:
    """The image with its EXIF orientation applied. Raises Unreadable as `decode`."""
    with _opened(data) as image:
        _load(image)
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # broken EXIF, as in _orientation
            upright = image
    if upright.mode == "F":
        raise Unreadable("floating-point pixels have no agreed white")
    return upright


def _as_rgb(image: Image.Image) -> Image.Image:
    try:
        if image.mode == "LAB":
            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB")) or image
        return image.convert("RGB")
    except (ValueError, OSError, ImageCms.PyCMSError) as error:
        raise Unreadable(_in_words(error)) from None


def find_culprits(count: int, works: Callable[[Sequence[int]], bool]) -> list[int]:
    """The members of range(count) that fail on their own, by bisection.

    works    says whether a group of them goes through together; a group that does is cleared at once
    """

    culprits = []
    groups = [range(count)] if count else []
    while groups:
        group = groups.pop()
        if works(group):
            continue
        if len(group) == 1:
            culprits.append(group[0])
        else:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
    return culprits


class ImageFiles:
    """The encoded images of a split as the loader wants them: bytes, and the size that crops are cut from.

    bits     that are kept of a colour
    sizes    int32 [N, 2], height and width of what has been looked at, else 0
    """

    def __init__(self, split: Split, bits: int = 8) -> None:
        self.split, self.bits = split, bits
        self.sizes = np.zeros((len(split), 2), dtype=np.int32)
        self.by_pillow: set[int] = set()
        """Images that the fast decoder refuses and Pillow decodes."""

    def load(self, index: int) -> bytes:
        """Encoded bytes of one image, looked at the first time; raises Unreadable. Safe from several threads."""
        data = self.split.read(index)
        if not self.sizes[index, 0]:
            header = look(data)
            if not header.fast:
                self.by_pillow.add(index)
            self.sizes[index] = header.height, header.width
        return self.through_pillow(index, data) if index in self.by_pillow else data

    def through_pillow(self, index: int, data: bytes) -> bytes:
        """The image as an uncompressed BMP, which every decoder reads, or grey of 16 bits as PNG; raises Unreadable."""
        decoded = decode_whole(data) if self.bits == 16 else decode(data)
        image, kind = (decoded, "BMP") if isinstance(decoded, Image.Image) else (Image.fromarray(decoded), "PNG")
        self.sizes[index] = image.height, image.width
        encoded = io.BytesIO()
        image.save(encoded, kind)
        return encoded.getvalue()


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's format plugins raise nearly anything on malformed headers
        raise Unreadable(_in_words(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(TOO_LARGE)
    return image


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # as above, for the pixel data
        raise Unreadable(_in_words(error)) from None


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF raises anything from SyntaxError to struct.error, and the pixels are fine
        return 1


def _in_words(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    return str(error) or type(error).__name__


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """16-bit grey, which Pillow's own conversion would clip, scaled so that 65535 is 255."""
    return np.rint(np.clip(pixels.astype(np.float32) / 257, 0, 255)).astype(np.uint8)
