"""What is held out for validation: each class in its share, groups whole, and no class without training images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.sources.holdout import NAME, Holdout, held_out, read_holdout
from engine.data.sources.source import DataError

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=200).map(np.array)


@given(labels=LABELS, share=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_each_class_has_its_share_on_both_sides(labels, share, seed):
    counts = np.bincount(labels)
    if counts.max() < 2:
        with pytest.raises(DataError, match="no image can be held out"):
            held_out(labels, share, seed)
        return
    chosen = held_out(labels, share, seed)
    for label in np.unique(labels):
        own = chosen[labels == label]
        if len(own) > 1:
            assert 1 <= own.sum() <= len(own) - 1 and abs(own.sum() - share * len(own)) <= 1
        else:
            assert not own.any(), "the only image of a class trains"
    assert (held_out(labels, share, seed) == chosen).all()


def test_the_seed_chooses_others():
    labels = np.zeros(100, dtype=np.int64)
    assert (held_out(labels, 0.2, 0) != held_out(labels, 0.2, 1)).any()
    assert held_out(labels, 0.2, 0).sum() == held_out(labels, 0.2, 1).sum() == 20


@given(
    groups=st.lists(st.integers(0, 25), min_size=2, max_size=150),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_groups_stay_whole_and_every_class_trains(groups, share, seed, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups))))
    names = [f"patient {group}" for group in groups]
    try:
        chosen = held_out(labels, share, seed, names)
    except DataError:
        # true only where each group is all that some class has
        for group in set(groups):
            own = np.array(groups) == group
            assert any(own[labels == label].all() for label in np.unique(labels[own]))
        return
    assert chosen.any() and len({(name, side) for name, side in zip(names, chosen, strict=True)}) == len(set(names))
    assert set(labels[~chosen]) == set(labels)


def test_many_small_groups_meet_the_share():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 5000)
    groups = [str(label * 1000 + number) for label, number in zip(labels, generator.integers(0, 60, 5000), strict=True)]
    chosen = held_out(labels, 0.2, 0, groups)
    for label in range(5):
        assert abs(chosen[labels == label].mean() - 0.2) < 0.02


def test_a_damaged_record_is_refused(tmp_path):
    assert read_holdout(tmp_path) is None
    kept = Holdout(0.2, 1, "", ["a/1.jpg"])
    import json

    (tmp_path / NAME).write_text(json.dumps(kept.as_dict()))
    assert read_holdout(tmp_path) == kept
    for text in ("{", '{"val": [1]}', "[]", '{"val": ["a"]}'):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(DataError, match=r"split\.json"):
            read_holdout(tmp_path)
