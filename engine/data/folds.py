"""One fold of a cross-validation: all images of a source, split anew into training and val images.

Each image is a val image in exactly one fold. Folds have each class in its share (stratified); images of one group,
such as the pictures of one patient, are never on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from engine.data.sources.groups import groups_of
from engine.data.sources.joined import joined
from engine.data.sources.source import DataError, Source

SEED = 20
"""Of the assignment, which is the same for every run: the folds of one sweep are comparable."""


def fold_numbers(labels: np.ndarray, folds: int, groups: Sequence[str] | None = None) -> np.ndarray:
    """int64 [N]: the fold in which each image is a val image.

    labels  int64 [N]
    groups  N names; images of one name share a fold

    Raises DataError for a class with fewer images, or fewer groups, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if groups is not None:
            count = len({group for group, own in zip(groups, labels, strict=True) if own == label})
        if count < folds:
            what = "groups" if groups is not None else "images"
            raise DataError(f"{folds} folds need as many {what} of each class; class number {label} has {count}")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    numbers = np.empty(len(labels), dtype=np.int64)
    split = kind(folds, shuffle=True, random_state=SEED).split(np.zeros(len(labels)), labels, groups)
    for fold, (_, test) in enumerate(split):
        numbers[test] = fold
    return numbers


def fold_of(source: Source, folds: int, fold: int, group_by: str = "") -> Source:
    """`source` with its images split for the 0-based `fold`; as it is for no folds.

    group_by  a pattern whose first group (or whole match) in a path names the image's group; none: every image alone

    Raises DataError for images that no fold can be made of, and for a pattern that a path does not match.
    """
    if not folds:
        return source
    whole = joined(source.train, source.val, source.name)
    groups = groups_of(whole.paths, group_by) if group_by else None
    numbers = fold_numbers(whole.labels, folds, groups)
    train, val = (whole.take(np.flatnonzero(chosen)) for chosen in (numbers != fold, numbers == fold))
    return dataclasses.replace(source, train=train, val=val)
