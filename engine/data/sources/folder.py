"""A folder of images: train/ and val/, each with one folder a class, images at any depth below it."""

import os
from pathlib import Path

import numpy as np

from engine.data.sources.source import DataError, Source, Split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Names that count as images, in any case; what is inside decides how they are decoded."""

# ImageNet's statistics, which photographs and published weights share (torchvision's transforms)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def open_folder(root: Path) -> Source:
    """List root/train/CLASS/... and root/val/CLASS/...; classes are train's folder names in sorted order.

    Random-resized crops keep 8 % to 100 % of the area (Szegedy et al. 2014, arXiv:1409.4842), and evaluation takes
    the centre 87.5 % of the shorter side. Files with other endings and names that begin with a dot are left out.

    Raises DataError for a missing root, train/ or val/, a split without class folders, a class without images, and
    a class in val/ that train/ lacks.
    """
    if not root.is_dir():
        raise DataError(f"--data.root {root}: no such folder; expected a folder with train/ and val/")
    train_classes = class_folders(root, "train")
    val_classes = class_folders(root, "val")
    extra = sorted(set(val_classes) - set(train_classes))
    if extra:
        raise DataError(
            f"{root / 'val'} has classes that {root / 'train'} lacks: {', '.join(extra[:10])}; "
            "every class needs training images"
        )
    return list_splits("folder", root, train_classes, val_classes)


def list_splits(name: str, root: Path, train_classes: list[str], val_classes: list[str]) -> Source:
    """A source over class folders that are known to be there; raises DataError for one without images."""
    label_of = {class_name: label for label, class_name in enumerate(train_classes)}
    return Source(
        name=name,
        classes=train_classes,
        train=list_split(root / "train", {c: label_of[c] for c in train_classes}),
        val=list_split(root / "val", {c: label_of[c] for c in val_classes}),
        mean=MEAN,
        std=STD,
        flip=True,
        crop_scale=(0.08, 1.0),
        eval_crop=0.875,
    )


def class_folders(root: Path, split: str) -> list[str]:
    """Sorted names of the class folders in root/split."""
    folder = root / split
    if not folder.is_dir():
        found = sorted(entry.name + "/" for entry in root.iterdir() if entry.is_dir())
        has = f"it has {', '.join(found[:10])}" if found else "it has no folders"
        raise DataError(
            f"{root} has no folder {split}/ ({has}); expected train/ and val/, each with one folder a class"
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no class folders; expected one a class, as in {folder / 'cat' / '001.jpg'}")
    return names


def list_split(folder: Path, label_of: dict[str, int]) -> Split:
    """Every image below folder/CLASS, classes in the order given and paths in sorted order."""
    paths: list[str] = []
    labels: list[int] = []
    for name, label in label_of.items():
        found = images_below(folder / name)
        if not found:
            endings = " ".join(EXTENSIONS)
            raise DataError(f"class folder {folder / name} holds no images (looked for names ending in {endings})")
        paths += found
        labels += [label] * len(found)
    return Split(labels=np.array(labels, dtype=np.int64), paths=paths)


def images_below(folder: Path) -> list[str]:
    """Sorted paths of the image files below `folder`; links to folders are followed, as in torchvision."""
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [
            os.path.join(parent, name)  # noqa: PTH118 (a million paths: strings, not Path objects)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)
