"""One fold of a cross-validation: all images of a source, split anew into training and test images.

Each image is a test image in exactly one fold. Folds have each class in its share (stratified); images of one group,
such as the pictures of one patient, are never on both sides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from engine.data.sources.source import DataError, Source, Split

SEED = 20
"""Of the assignment, which is the same for every run: the folds of one sweep are comparable."""


def fold_numbers(labels: np.ndarray, folds: int, groups: Sequence[str] | None = None) -> np.ndarray:
    """int64 [N]: the fold in which each image is a test image.

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
    both = (source.train, source.val)
    labels = np.concatenate([split.labels for split in both])
    paths = None if source.train.paths is None or source.val.paths is None else source.train.paths + source.val.paths
    arrays = None
    if paths is None:
        if source.train.arrays is None or source.val.arrays is None:
            raise DataError(f"{source.name} keeps its two splits in different ways; folds need one")
        arrays = np.concatenate([source.train.arrays, source.val.arrays])
    numbers = fold_numbers(labels, folds, groups_of(paths, group_by) if group_by else None)

    def part(chosen: np.ndarray) -> Split:
        places = np.flatnonzero(chosen)
        listed = None if paths is None else [paths[place] for place in places]
        return Split(labels[places], listed, None if arrays is None else arrays[places])

    return dataclasses.replace(source, train=part(numbers != fold), val=part(numbers == fold))


def groups_of(paths: Sequence[str] | None, pattern: str) -> list[str]:
    """The group of each image. Raises DataError where a path has none."""
    if paths is None:
        raise DataError("images that are no files have no path that could name their group")
    found = []
    for path in paths:
        match = re.search(pattern, path)
        if match is None:
            raise DataError(f"no group in {path}: the pattern {pattern} does not match")
        found.append(match[1] if match.groups() else match[0])
    return found
