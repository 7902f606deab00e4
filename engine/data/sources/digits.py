"""scikit-learn's handwritten digits as a folder of JPEGs: real images that need no download.

1,797 digits of 8×8 pixels and 17 grey levels (Alpaydin & Kaynak 1998, UCI), test part. They are written once as
JPEG files into the cache, so that a run on them reads, decodes and augments exactly as a run on photographs does.
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.data.sources.folder import list_splits
from engine.data.sources.source import DataError, Source

FOLDER = "digits-v2"
COUNT = 1797
SIDE = 32
VAL_SHARE = 0.2
SPLIT_SEED = 1797

# Measured on the 1,797 enlarged images, on a scale where white is 1.
MEAN = 0.3055
STD = 0.3235


def open_digits(cache: Path) -> Source:
    """The digits in cache/digits-v2, written there at the first call; 80 % train, 20 % val, stratified.

    Safe when several processes start at once: each writes a folder of its own and one of them is renamed into place.
    Raises DataError where the cache cannot be written or what it holds is not complete.
    """
    folder = cache / FOLDER
    if not folder.is_dir():
        _create(folder)
    classes = [str(digit) for digit in range(10)]
    try:
        source = list_splits("digits", folder, classes, classes)
    except DataError as error:
        raise DataError(f"{folder} is damaged ({error}); delete it and it will be made again") from None
    if len(source.train) + len(source.val) != COUNT:
        found = len(source.train) + len(source.val)
        raise DataError(f"{folder} holds {found} images instead of {COUNT}; delete it and it will be made again")
    return replace(source, mean=(MEAN,) * 3, std=(STD,) * 3, flip=False, crop_scale=(0.7, 1.0), eval_crop=1.0)


def _create(folder: Path) -> None:
    """Write the digits beside `folder`, then rename; a folder that another process made first is kept."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise DataError(
            f"the digits cannot be written to {folder} ({error.strerror}); set HCR_CACHE to a folder that can be"
        ) from None
    try:
        write_digits(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private, and a cache may be shared
        os.rename(temporary, folder)  # noqa: PTH104 (Path.rename on a folder says the same, less plainly)
    except OSError as error:
        if not folder.is_dir():
            raise DataError(f"the digits cannot be written to {folder} ({error}); set HCR_CACHE elsewhere") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_digits(folder: Path) -> None:
    """Write folder/{train,val}/DIGIT/NNNN.jpg: 32×32 grey JPEGs at quality 100, grey level 0..16 scaled to 0..255.

    The 8×8 originals are enlarged four times, bilinearly: training crops are windows of whole pixels, and an 8×8 image
    has hardly any.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    generator = np.random.Generator(np.random.Philox(key=SPLIT_SEED))
    for digit in range(10):
        members = generator.permutation(np.flatnonzero(bunch.target == digit))
        val_count = round(len(members) * VAL_SHARE)
        for split, chosen in (("val", members[:val_count]), ("train", members[val_count:])):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for index in chosen:
                digit_image = Image.fromarray(pixels[index]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                digit_image.save(target / f"{index:04d}.jpg", quality=100)
