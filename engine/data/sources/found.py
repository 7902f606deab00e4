"""What lies at --data.root, before it is a source: splits by name, from whichever layout.

Here is what all layouts share: what is held out where no validation split is there, what each split is used for, and
the classes and groups that no split may lack or share.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engine.data.sources.groups import groups_of, refuse_shared_groups
from engine.data.sources.holdout import Holdout, held_out
from engine.data.sources.source import DataError, Source, Split
from engine.data.sources.texts import Texts
from engine.runs.wording import listed

logger = logging.getLogger("hcr")

# ImageNet's statistics, which photographs and published weights share (torchvision's transforms)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

VAL_SHARE = 0.2
USES = {"train": "trains", "val": "chooses the weights", "test": "is evaluated once at the end"}


@dataclass(frozen=True)
class Wanted:
    """How what is found is to be read: the run's fields, and what the run wrote down."""

    val_share: float = VAL_SHARE
    split_seed: int = 0
    group_by: str = ""
    columns: str = ""
    recorded: Holdout | None = None
    """What the run to go on with, or to evaluate, held out."""


@dataclass(frozen=True)
class Found:
    """Splits of one layout. Labels count `classes`."""

    layout: str
    root: Path
    classes: list[str]
    splits: dict[str, Split]
    """By what they are for: train, val, test."""
    called: dict[str, str] = field(default_factory=dict)
    """What each is called there; empty for a layout that names no splits, of which `train` is all images."""
    groups: dict[str, Sequence[str]] = field(default_factory=dict)
    """Groups that the layout itself names, of each split's images."""


def source_from(found: Found, wanted: Wanted) -> Source:
    """A source that trains. Raises DataError for no training split, a class without training images, and a group on
    both sides."""
    splits, root = dict(found.splits), found.root
    if "train" not in splits:
        raise DataError(
            f"{root} has no split train/ (it has {', '.join(sorted(found.called.values()))}); expected one to train on"
        )
    if len(found.classes) == 1:
        logger.info("note: %s has one class (%s): there is nothing to tell it from", root, found.classes[0])
    for name, split in splits.items():
        if not len(split):
            raise DataError(f"{root}: {found.called.get(name, name)} has no images")
    groups = dict(found.groups)
    if wanted.group_by:
        groups = {name: groups_of(split.paths, wanted.group_by) for name, split in splits.items()}
    refuse_shared_groups(groups, {name: split.paths or () for name, split in splits.items()})
    made = None
    if "val" not in splits:
        made, splits["train"], splits["val"] = _held_out(found, wanted, groups.get("train"))
    refuse_untrained(found, splits)
    if found.called:
        told = ", ".join(
            f"{found.called.get(name, 'the val split')} {use} ({len(splits[name])})"
            for name, use in USES.items()
            if name in splits
        )
        logger.info("%s: %s", root, told)
    return _source(found, splits, made)


def _source(found: Found, splits: dict[str, Split], made: Holdout | None = None) -> Source:
    """Random-resized crops keep 8 % to 100 % of the area (Szegedy et al. 2014, arXiv:1409.4842), and evaluation takes
    the centre 87.5 % of the shorter side."""
    return Source(
        name=found.layout,
        classes=found.classes,
        train=splits["train"],
        val=splits["val"],
        mean=MEAN,
        std=STD,
        flip=True,
        crop_scale=(0.08, 1.0),
        eval_crop=0.875,
        test=splits.get("test"),
        made=None if made is None else made.as_dict(),
    )


def _by_number(found: Found, known: list[str]) -> list[str] | None:
    """The known classes that the found ones mean where these are numbers and those are names; None where not.

    Raises DataError for a number that no class has.
    """
    if not all(name.isdecimal() for name in found.classes) or all(name.isdecimal() for name in known):
        return None
    if high := [name for name in found.classes if int(name) >= len(known)]:
        raise DataError(f"{found.root} has label {high[0]}, and the weights know {len(known)} classes, from 0")
    return [known[int(name)] for name in found.classes]


def refuse_untrained(found: Found, splits: dict[str, Split]) -> None:
    """Raise DataError for classes without a training image, naming where their images are."""
    trained = np.bincount(splits["train"].labels, minlength=len(found.classes)) > 0
    if trained.all():
        return
    lacking = [found.classes[label] for label in np.flatnonzero(~trained)]
    there = [
        found.called.get(name, name)
        for name, split in splits.items()
        if name != "train" and not trained[split.labels].all()
    ]
    known = [name for label, name in enumerate(found.classes) if trained[label]]
    where = f"{' and '.join(there)} has classes that" if there else f"{found.root} names classes that"
    raise DataError(
        f"{found.root}: {where} {found.called.get('train', 'the training split')} lacks: "
        f"{listed(lacking, known, most=10)}; every class needs training images"
    )


def _held_out(found: Found, wanted: Wanted, groups: Sequence[str] | None) -> tuple[Holdout, Split, Split]:
    """What is held out of the training split as val: as the run wrote it down, else by seed."""
    whole, root = found.splits["train"], found.root
    names = _names(whole, root)
    recorded = wanted.recorded
    if recorded is not None:
        known = set(recorded.val)
        chosen = np.fromiter((name in known for name in names), bool, len(whole))
        if gone := len(known) - int(chosen.sum()):
            logger.info("note: %d of the %d images that the run held out for val are gone", gone, len(known))
        if not chosen.any() or chosen.all():
            raise DataError(f"{root} holds no image that the run trained on and none that it held out: other data?")
        made = recorded
    else:
        try:
            chosen = held_out(whole.labels, wanted.val_share, wanted.split_seed, groups)
        except DataError as error:
            raise DataError(f"{root}: {error}") from error
        places = np.flatnonzero(chosen)
        val = list(names.take(places)) if isinstance(names, Texts) else [names[place] for place in places.tolist()]
        made = Holdout(wanted.val_share, wanted.split_seed, wanted.group_by, val)
    place = whole.place or str(root)
    train, val_split = (
        replace(whole.take(np.flatnonzero(own)), place=f"the {name} split of {place}")
        for name, own in (("train", ~chosen), ("val", chosen))
    )
    kept = " as the run wrote it down" if recorded else ", whole groups" if groups else ""
    logger.info(
        "%s has no val split: %d of %d images (--data.val-share %g%s) are held out as val",
        *(root, int(chosen.sum()), len(whole), made.val_share, kept),
    )
    return made, train, val_split


def _names(split: Split, root: Path) -> Sequence[str]:
    """The images' names relative to the data."""
    if split.stored is not None:
        return split.stored.keys
    if isinstance(split.paths, Texts):
        return split.paths.bare()
    base = str(root if root.is_dir() else root.parent)
    return [os.path.relpath(path, base) for path in split.paths or ()]


def source_to_evaluate(found: Found, classes: list[str] | None, name: str | None = None) -> Source:
    """The images to evaluate on: the split of that name; none is val, else test, else all where no splits are named.

    classes  those that the weights know, in order: others are refused, and not all need be there. None: what is there

    Every split of the source is these images. Raises DataError.
    """
    there = found.splits
    if name is None:
        name = next((one for one in ("val", "test") if one in there), "" if found.called else "train")
    if name not in there:
        has = ", ".join(found.called.values()) or "no named splits"
        raise DataError(f"{found.root} has no {name or 'val or test'} split (it has {has}); name one with --split")
    split, known = there[name], found.classes if classes is None else classes
    names = _by_number(found, known) or found.classes
    present = [names[label] for label in np.unique(split.labels)]
    if extra := sorted(set(present) - set(known)):
        raise DataError(
            f"{found.root} has classes that the weights lack: {listed(extra, known, most=10)}; "
            f"they know {listed(known)}"
        )
    label_of = {one: label for label, one in enumerate(known)}
    numbers = np.array([label_of.get(one, -1) for one in names], dtype=np.int64)
    split = replace(split, labels=numbers[split.labels])
    return _source(replace(found, classes=list(known)), {"train": split, "val": split, "test": split})
