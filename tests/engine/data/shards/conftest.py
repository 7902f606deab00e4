"""A folder of small pictures, and shards of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.shards.write import make_shards
from engine.data.sources.open import open_source

NAMES = ["1.jpg", "2.PNG", "two.dots.jpg", "1.png", "100%.jpg", "deep/er/3.jpeg", "1.jpg.jpg", "x..jpg"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes with odd names, and a test split."""
    root = tmp_path / "photos"
    for split, names in (("train", NAMES), ("val", ["1.jpg", "9.webp"]), ("test", ["7.bmp"])):
        for place, label in enumerate(("cat", "dog")):
            for number, name in enumerate(names):
                path = root / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(number + 100 * place).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def shards(photos, tmp_path) -> Path:
    """Shards of the photos, a few images each."""
    output = tmp_path / "shards"
    make_shards(open_source("folder", photos), output, 8_000, 2)
    return output
