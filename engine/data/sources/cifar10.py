"""CIFAR-10 (Krizhevsky 2009) from its Python batches, in torchvision's layout.

The batches are pickles, and a pickle can run any code. They are read by an unpickler that knows arrays and plain values
only: unlike a check of torchvision's MD5, that also admits batches that someone repacked or cut to a part.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.sources.download import fetch_once
from engine.data.sources.source import DataError, Source, Split

FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}
META = "batches.meta"
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def open_cifar10(root: Path, *, download: bool = True) -> Source:
    """CIFAR-10 in root/cifar-10-batches-py: 50,000 training and 10,000 test images of 32×32, the latter as val.

    Raises DataError, naming the folder, where files are missing and cannot be fetched, or are not what they should be.
    """
    folder = root / FOLDER
    names = [META, *BATCHES["train"], *BATCHES["val"]]

    def missing() -> list[str]:
        return [name for name in names if not (folder / name).is_file()]

    if missing():
        fetch_once("cifar10", root, f"{folder} with the files {', '.join(names)}", _fetch, missing, download)
    meta = read_batch(folder / META)
    classes = [_text(name) for name in meta.get("label_names", [])]
    if len(classes) != 10:
        raise DataError(f"{folder / META} names {len(classes)} classes instead of 10; fetch it again")
    return Source(
        name="cifar10",
        classes=classes,
        train=_split([folder / name for name in BATCHES["train"]]),
        val=_split([folder / name for name in BATCHES["val"]]),
        mean=MEAN,
        std=STD,
        flip=True,
        crop_scale=(0.35, 1.0),
        eval_crop=1.0,
    )


class PlainUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays, numbers, strings, lists and dictionaries, and refuses every other name."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def read_batch(path: Path) -> dict[str, Any]:
    """One batch file as a dictionary with text keys; raises DataError for anything but arrays and plain values."""
    try:
        content = PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(
            f"{path} is not a batch of CIFAR-10 ({type(error).__name__}: {error}); fetch it again"
        ) from None


def _split(paths: list[Path]) -> Split:
    pixels, labels = [], []
    for path in paths:
        batch = read_batch(path)
        data, targets = batch.get("data"), batch.get("labels")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise DataError(f"{path} holds no uint8 images of 3×32×32; fetch it again")
        if not isinstance(targets, list) or len(targets) != len(data) or not set(targets) <= set(range(10)):
            raise DataError(
                f"{path} does not hold a label from 0 to 9 for each of its {len(data)} images; fetch it again"
            )
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += targets
    return Split(labels=np.array(labels, dtype=np.int64), arrays=np.ascontiguousarray(np.concatenate(pixels)))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _fetch(root: Path) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    # not CIFAR10(download=True), which would then unpickle what it fetched
    download_and_extract_archive(CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
