"""A folder of images: train/ and val/, each with one folder a class, images at any depth below it."""

import logging
from pathlib import Path

import numpy as np

from engine.data.sources.listing import EXTENSIONS, Listing, images_below, is_aside
from engine.data.sources.source import DataError, Source, Split
from engine.runs.wording import listed

__all__ = ["EXTENSIONS", "images_below", "list_splits", "open_folder", "open_for_evaluation"]

logger = logging.getLogger("hcr")

# ImageNet's statistics, which photographs and published weights share (torchvision's transforms)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def open_folder(root: Path) -> Source:
    """List root/train/CLASS/... and root/val/CLASS/...; classes are train's folder names in sorted order.

    Random-resized crops keep 8 % to 100 % of the area (Szegedy et al. 2014, arXiv:1409.4842), and evaluation takes
    the centre 87.5 % of the shorter side. What is left out is counted and said (engine.data.sources.listing).

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
            f"{root / 'val'} has classes that {root / 'train'} lacks: {listed(extra, train_classes, most=10)}; "
            "every class needs training images"
        )
    if len(train_classes) == 1:
        logger.info("note: %s has one class (%s): there is nothing to tell it from", root, train_classes[0])
    return list_splits("folder", root, train_classes, val_classes)


def open_for_evaluation(root: Path, classes: list[str] | None) -> Source:
    """The images to evaluate on: root/val, or root itself where it has class folders and neither train/ nor val/.

    classes  those that the weights know, in order: folders of other names are refused, and not all need be there.
             None: what is there, in sorted order

    Both splits of the source are these images. Raises DataError.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; expected val/, or a folder a class")
    if (root / "train").is_dir() and (root / "val").is_dir():
        return open_folder(root)
    folder = root / "val" if (root / "val").is_dir() else root
    found = class_folders(folder.parent, folder.name)
    known = found if classes is None else classes
    if extra := sorted(set(found) - set(known)):
        raise DataError(
            f"{folder} has classes that the weights lack: {listed(extra, known, most=10)}; they know {listed(known)}"
        )
    label_of = {name: label for label, name in enumerate(known)}
    split = list_split(folder, {name: label_of[name] for name in known if name in set(found)})
    return Source("folder", list(known), split, split, MEAN, STD, flip=True, crop_scale=(0.08, 1.0), eval_crop=0.875)


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
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_aside(entry.name))
    if not names:
        raise DataError(f"{folder} has no class folders; expected one a class, as in {folder / 'cat' / '001.jpg'}")
    return names


def list_split(folder: Path, label_of: dict[str, int]) -> Split:
    """Every image below folder/CLASS, classes in the order given and paths in sorted order."""
    paths: list[str] = []
    labels: list[int] = []
    listing = Listing()
    for above in (folder.parent, folder):  # a link to them would list all classes as one
        listing.enter(str(above))
    for name in label_of:
        if not listing.enter(str(folder / name)):
            raise DataError(f"class folder {folder / name} is a link to another class's folder, or to one above it")
    for name, label in label_of.items():
        found = listing.below(str(folder / name))
        if not found:
            endings = " ".join(EXTENSIONS)
            there = ", ".join(f"{count} {ending}" for ending, count in listing.unread.items())
            raise DataError(
                f"class folder {folder / name} holds no images (looked for names ending in {endings}"
                + (f"; there are {there}, which are not read)" if there else ")")
            )
        paths += found
        labels += [label] * len(found)
    listing.tell(str(folder))
    return Split(labels=np.array(labels, dtype=np.int64), paths=paths)
