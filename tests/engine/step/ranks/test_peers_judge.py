"""Who is named when a rank shows no sign of life."""

import time
from types import SimpleNamespace

import pytest

from engine.step.ranks.peers import LEFT, Peers, Sign

NOW = 1000.0


@pytest.fixture
def peers(monkeypatch) -> Peers:
    """Rank 2, on node-b with rank 3, of four; all have just shown a sign."""
    monkeypatch.setattr(time, "monotonic", lambda: NOW)
    peers = Peers(SimpleNamespace(rank=2, ranks=4, host="node-b"), patience=30, end=lambda code: None)
    peers._signs = {rank: Sign("7", "step 5", f"node-{'ab'[rank // 2]}", NOW - 1, NOW - 1) for rank in range(4)}
    return peers


def test_nobody_is_named_while_all_are_there(peers):
    assert peers._judge(heard=NOW - 1) is None


def test_a_silent_rank_is_named_with_its_machine(peers):
    peers._signs[1].seen = NOW - 31
    assert peers._judge(NOW).startswith("rank 1 on node-a: no sign of life for 30 s")


def test_one_that_left_as_it_should_is_not(peers):
    peers._signs[1].seen, peers._signs[1].text = NOW - 100, LEFT
    assert peers._judge(NOW) is None


def test_where_this_machine_is_cut_off_the_others_are_named(peers):
    """Its own signs do not arrive either."""
    for sign in peers._signs.values():
        sign.seen = NOW - 31
    assert peers._judge(NOW).startswith("ranks 0-1 on node-a:")


def test_a_store_that_died_is_told(peers):
    assert "the store of rank 0 on node-a has not answered for 40 s" in peers._judge(NOW - 40)


def test_one_that_hangs_is_named_by_what_it_does(peers):
    for sign in peers._signs.values():
        sign.since = NOW - 40
    assert peers._judge(NOW) is None  # all at the same: compiling, perhaps
    peers._signs[3].doing = "waiting for images"
    assert peers._judge(NOW).startswith(
        "rank 3 on node-b: “waiting for images” for 30 s, while the others wait in “step"
    )
