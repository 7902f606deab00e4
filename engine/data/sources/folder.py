"""A folder of images: train/ beside val/ or test/, or class folders alone; images at any depth below a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.data.sources.found import MEAN, STD, Found
from engine.data.sources.listing import EXTENSIONS, Listing, images_below, is_aside
from engine.data.sources.source import DataError, Source, Split

__all__ = ["EXTENSIONS", "images_below", "list_splits", "read_folder"]

ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a split is for, by its name in small letters."""


def read_folder(root: Path) -> Found:
    """List root/train/CLASS/… and what is beside it, or root/CLASS/…; classes are train's, in sorted order.

    Names of splits are `ROLES`, in any case. A folder of such a name that holds images and no folders is a class where
    no other split is there. What is left out is counted and said (engine.data.sources.listing).

    Raises DataError for two folders of one role, no class folders, and a class without images.
    """
    names = folders_in(root)
    splits = {name: ROLES[name.lower()] for name in names if name.lower() in ROLES}
    whole = {name: role for name, role in splits.items() if folders_in(root / name)}
    if not whole and len(splits) < len(names):
        _refuse_one_level_up(root, names)
        return Found(
            "folder", root, names, {"train": list_split(root, dict(zip(names, range(len(names)), strict=True)))}
        )
    called: dict[str, str] = {}
    for name, role in splits.items():
        if role in called:
            raise DataError(f"{root} has {called[role]} and {name}/: two folders for {role}; keep one of them there")
        called[role] = f"{name}/"
    if not called:
        _refuse_empty(root)
    folders = {role: root / name for role, name in called.items()}
    own = {role: class_folders(folder) for role, folder in folders.items()}
    classes = own["train"] if "train" in own else sorted(set().union(*own.values()))
    known = set(classes)
    classes = classes + sorted(set().union(*own.values()) - known)
    label_of = {name: label for label, name in enumerate(classes)}
    listed = {role: list_split(folders[role], {name: label_of[name] for name in own[role]}) for role in own}
    return Found("folder", root, classes, listed, called)


def _refuse_empty(root: Path) -> None:
    if files := images_below(root):
        raise DataError(
            f"{root} has {len(files)} images and no class folders; expected one a class, as in "
            f"{root / 'cat' / Path(files[0]).name}, or a list of them with their labels (.csv)"
        )
    raise DataError(
        f"{root} holds no images; expected train/ and val/ with one folder a class, class folders alone, tar shards, a "
        "saved dataset, or a list (.csv, .tsv, .jsonl, .parquet)"
    )


def _refuse_one_level_up(root: Path, names: list[str]) -> None:
    if len(names) == 1 and any(ROLES.get(name.lower()) == "train" for name in folders_in(root / names[0])):
        raise DataError(f"{root} holds {names[0]}/ alone, which has train/; name it: --data.root {root / names[0]}")


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


def folders_in(folder: Path) -> list[str]:
    """Sorted names of the folders in one, hidden and system folders left out."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_aside(entry.name))


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders of a split. Raises DataError for none."""
    names = folders_in(folder)
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
    return Split(labels=np.array(labels, dtype=np.int64), paths=paths, place=f"{folder.name}/")
