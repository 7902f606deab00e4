"""What tells one data set from another, wherever it lies."""

import shutil

import numpy as np
import pytest
from PIL import Image

from engine.data.fingerprint import Fingerprint, fingerprint_of
from engine.data.sources.open import open_source
from engine.data.sources.source import Source, Split


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 2, 3)).save(root / split / name / f"{number}.bmp")
    return root


def test_a_moved_folder_is_the_same_data(pictures, tmp_path, monkeypatch):
    before = fingerprint_of(open_source("folder", pictures))
    assert (before.classes, before.train_images, before.val_images) == (["cat", "dog"], 8, 4)
    shutil.move(pictures, tmp_path / "elsewhere" / "deeper")
    assert fingerprint_of(open_source("folder", tmp_path / "elsewhere" / "deeper")) == before
    monkeypatch.chdir(tmp_path / "elsewhere")
    from pathlib import Path

    assert fingerprint_of(open_source("folder", Path("deeper"))) == before
    assert Fingerprint.from_dict(before.as_dict()) == before


@pytest.mark.parametrize("change", ["renamed", "gone", "new", "other size", "moved to the other class"])
def test_other_images_have_another_fingerprint(pictures, change):
    before = fingerprint_of(open_source("folder", pictures))
    image = pictures / "val" / "cat" / "0.bmp"
    if change == "renamed":
        image.rename(image.with_name("5.bmp"))
    elif change == "gone":
        image.unlink()
    elif change == "new":
        shutil.copy(image, image.with_name("7.bmp"))
    elif change == "other size":
        Image.new("RGB", (8, 9)).save(image)
    else:
        image.rename(pictures / "val" / "dog" / "9.bmp")
    after = fingerprint_of(open_source("folder", pictures))
    assert after.digest != before.digest and after.classes == before.classes


def test_arrays_have_one_too():
    def source(first: int) -> Source:
        pixels = np.zeros((3, 4, 4), dtype=np.uint8)
        pixels[0, 0, 0] = first
        split = Split(np.array([0, 1, 1]), arrays=pixels)
        return Source("made", ["a", "b"], split, split, (0,) * 3, (1,) * 3, False, (0.5, 1.0), 1.0)

    assert fingerprint_of(source(0)) == fingerprint_of(source(0))
    assert fingerprint_of(source(0)).digest != fingerprint_of(source(1)).digest


@pytest.mark.parametrize(
    "values", [None, {}, [], "text", {"classes": 3, "train_images": 1, "val_images": 1, "digest": ""}]
)
def test_what_is_no_fingerprint_is_none(values):
    assert Fingerprint.from_dict(values) is None
