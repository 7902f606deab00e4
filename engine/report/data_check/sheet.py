"""A sheet of pictures: what the network sees of the first images of a run, augmented, with their labels."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.data.preprocessing import Preprocessing

COLUMNS = 8
MOST, LEAST = 160, 96
"""Pixels a side between which pictures are shown: larger ones are shrunk, smaller ones enlarged by whole factors."""
CAPTION, GAP, TEXT = 30, 8, 11
PAPER, INK = (255, 255, 255), (30, 30, 30)
NAMED = 0.005
"""Least share of a class in a mixture that is named."""


def contact_sheet(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], wanted: Preprocessing) -> bytes:
    """PNG of a batch as the network gets it, normalisation undone, each picture over its label.

    images  float [N, C, H, W]
    labels  int64 [N], or float [N, classes] where images were mixed
    """
    count = images.shape[1]
    mean, std = (np.asarray(values, np.float32)[:count].reshape(1, count, 1, 1) for values in (wanted.mean, wanted.std))
    pixels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = pixels.repeat(3, axis=3) if count == 1 else pixels
    height, width = _shown(*pixels.shape[1:3])
    columns = min(COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + CAPTION + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for place, picture in enumerate(pixels):
        left = GAP + place % columns * (width + GAP)
        top = GAP + place // columns * (height + CAPTION + GAP)
        enlarged = width > picture.shape[1]
        how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(picture).resize((width, height), how), (left, top))
        for line, text in enumerate(caption(labels[place], classes)[:2]):
            draw.text((left, top + height + 2 + line * (TEXT + 2)), _cut(text, width, font), INK, font)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def caption(label: np.ndarray, classes: Sequence[str]) -> list[str]:
    """A line a class: its name, in a mixture with its share, the larger one first."""
    if np.ndim(label) == 0:
        return [classes[int(label)]]
    order = [place for place in np.argsort(-label, kind="stable") if label[place] >= NAMED]
    if len(order) == 1:
        return [classes[order[0]]]
    return [f"{label[place]:.0%} {classes[place]}" for place in order]


def _shown(height: int, width: int) -> tuple[int, int]:
    larger = max(height, width)
    scale = MOST / larger if larger > MOST else max(1, LEAST // larger)
    return round(height * scale), round(width * scale)


def _cut(text: str, width: int, font) -> str:
    """As much of the text as is no wider than its picture."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text.encode("utf-8", "replace").decode())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
