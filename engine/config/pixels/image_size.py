"""How large the images are that a network sees: one side in pixels, or height and width where they differ."""

from __future__ import annotations

ImageSize = int | tuple[int, int]
"""A number for square images; never a pair of equal numbers."""
LARGEST_SIDE = 2**14
"""Pixels; far above what a network is fed whole."""


def sides(size: ImageSize) -> tuple[int, int]:
    """(height, width) in pixels."""
    return size if isinstance(size, tuple) else (size, size)


def size_of(height: int, width: int) -> ImageSize:
    """The size of height × width pixels."""
    return height if height == width else (height, width)


def pixels_of(size: ImageSize) -> int:
    """Pixels of an image."""
    height, width = sides(size)
    return height * width


def at_least(size: ImageSize, least: int) -> ImageSize:
    """The same with no side below `least`."""
    height, width = sides(size)
    return size_of(max(height, least), max(width, least))


def size_in_words(size: ImageSize) -> str:
    """`224` or `96x160`."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def px(size: ImageSize) -> str:
    """`224 px` or `96x160 px`."""
    return f"{size_in_words(size)} px"


def size_from(value: int | list[int]) -> ImageSize:
    """A size as YAML and JSON keep it. Raises ValueError where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    height, width = (int(side) for side in value)
    return size_of(height, width)
