"""Strings in one run of bytes: what a list of them gives."""

import os
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.data.sources import texts
from engine.data.sources.texts import Texts

STRINGS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=40)


@given(strings=STRINGS, data=st.data())
def test_it_is_the_list(strings, data):
    made = Texts.of(strings)
    assert list(made) == strings and len(made) == len(strings) and made[1:] == strings[1:]
    assert list(pickle.loads(pickle.dumps(made))) == strings
    if strings:
        places = np.array(data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=60)), dtype=np.int64)
        part = made.take(places)
        assert list(part) == [strings[place] for place in places] and made[-1] == strings[-1]
        again = np.arange(len(part))[::-2]
        assert list(part.take(again)) == [list(part)[place] for place in again]


@given(strings=STRINGS.filter(lambda strings: not any("\0" in one for one in strings)))
def test_a_folder_is_put_before_all_that_is_relative(strings):
    made = Texts.of(strings, "/data/x")
    assert list(made) == [os.path.join("/data/x", one) for one in strings]  # noqa: PTH118
    assert list(made.bare()) == strings


def test_names_that_are_no_text_and_places_far_apart(monkeypatch):
    strings = [os.fsdecode(b"caf\xe9"), *["x" * 50] * 100, "end"]
    monkeypatch.setattr(texts, "CHUNK", 16)
    made = Texts.of(strings)
    assert list(made) == strings and list(made.take(np.array([101, 0]))) == ["end", strings[0]]
