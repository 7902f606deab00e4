"""Cross-validation: each image is tested once, classes keep their shares, groups stay together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.folds import fold_numbers, fold_of
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError, Source, Split


def made(count: int = 60, arrays: bool = False) -> Source:
    """Images of 3 classes; six of each patient, all of one class."""
    labels = np.arange(count) // 6 % 3
    paths = [f"patient{number // 6:02d}/{number}.png" for number in range(count)]
    pixels = np.arange(count, dtype=np.uint8).repeat(4).reshape(count, 2, 2)

    def split(places: slice) -> Split:
        if arrays:
            return Split(labels[places], arrays=pixels[places])
        return Split(labels[places], paths[places])

    cut = count * 2 // 3
    return Source(
        "made", ["a", "b", "c"], split(slice(cut)), split(slice(cut, None)), *[(0.5,) * 3] * 2, *[True, (1, 1), 1]
    )


@given(
    labels=st.lists(st.integers(0, 3), min_size=40, max_size=120).filter(
        lambda labels: min(np.bincount(labels)[np.unique(labels)]) >= 5
    ),
    folds=st.integers(2, 5),
)
def test_every_image_is_tested_once_and_classes_keep_their_shares(labels, folds):
    numbers = fold_numbers(np.array(labels), folds)
    assert set(numbers) == set(range(folds))
    for label in set(labels):
        counts = np.bincount(numbers[np.array(labels) == label], minlength=folds)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("arrays", [False, True])
def test_the_folds_of_a_source_are_all_of_it(arrays):
    source, seen = made(arrays=arrays), []
    for fold in range(4):
        part = fold_of(source, 4, fold)
        assert len(part.train) + len(part.val) == 60
        own = [
            part.val.path(place) if not arrays else int(part.val.arrays[place, 0, 0]) for place in range(len(part.val))
        ]
        seen += own
        if arrays:
            assert not set(own) & set(part.train.arrays[:, 0, 0].tolist())
        else:
            assert not set(own) & set(part.train.paths)
    assert len(seen) == len(set(seen)) == 60


def test_groups_are_never_on_both_sides():
    for fold in range(3):
        part = fold_of(made(), 3, fold, r"patient\d+")
        sides = [{path[:9] for path in split.paths} for split in (part.train, part.val)]
        assert sides[1] and not sides[0] & sides[1]


def test_no_folds_change_nothing():
    source = made()
    assert fold_of(source, 0, 0) is source


@pytest.mark.parametrize(
    ("folds", "pattern", "told"),
    [(50, "", "50 folds need as many images"), (4, r"patient\d+", "as many groups"), (3, "person", "does not match")],
)
def test_what_no_fold_can_be_made_of_is_refused(folds, pattern, told):
    with pytest.raises(DataError, match=told):
        fold_of(made(), folds, 0, pattern)


def test_the_digits_in_folds(tmp_path):
    source = open_source("digits")
    part = fold_of(source, 5, 0)
    assert len(part.train) + len(part.val) == 1797 and len(part.val) in (359, 360)
