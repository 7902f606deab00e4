"""Who tells that a rank has gone: the first one of a machine that is still there."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from engine.step.ranks.meeting import Meeting
from engine.step.ranks.peers import LEFT, Peers, Sign


@pytest.mark.parametrize(
    ("rank", "silent", "told"),
    [
        (0, {1}, True),
        (1, {2}, False),  # rank 0 is there, and says it
        (1, {0}, True),  # it was rank 0's to say, and that one hangs
        (2, {0}, False),
        (3, {0}, True),  # of another machine
    ],
)
def test_the_first_that_is_left_on_a_machine_says_it(monkeypatch, capsys, rank, silent, told):
    monkeypatch.setenv("LOCAL_RANK", str(rank % 3))
    ended = []
    hosts = ["one", "one", "one", "two"]
    peers = Peers(SimpleNamespace(rank=rank, ranks=4, host=hosts[rank]), patience=5.0, end=ended.append)
    peers.period = 0.01
    now = time.monotonic()
    for other, host in enumerate(hosts):
        peers._signs[other] = Sign("7", "step 3", host, now - 100 if other in silent else now + 100, now)
    peers._leave("rank 0 on one: no sign of life")
    assert ended == [1]
    assert ("no sign of life" in capsys.readouterr().err) is told


def test_one_that_has_ended_as_it_should_says_nothing_any_more(capsys):
    peers = Peers(SimpleNamespace(rank=1, ranks=2, host="one"), patience=5.0, end=lambda code: None)
    peers.speaks, peers.period = False, 0.01
    peers._signs[0] = Sign(LEFT, "", "one", time.monotonic(), 0.0)
    peers._leave("why")
    assert "why" in capsys.readouterr().err


@pytest.mark.parametrize("late", [0.0, 2.0], ids=["", "busy machine"])
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_stops_before_its_thread_has_shown_a_sign_is_named(capsys, monkeypatch, stopped, late):
    """SIGSTOP within the first second of a launch: the exchange that the other one waits in fails, and says whom.

    Also where the thread that looks does not get a core for longer than signs may be old.
    """
    monkeypatch.setenv("LOCAL_RANK", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    meetings = [Meeting(5.0, address | {"RANK": str(rank)}) for rank in range(2)]
    ended = []
    both = [Peers(meeting, patience=60.0, end=ended.append) for meeting in meetings]
    for peers in both:
        peers.period = 0.3
    monkeypatch.setattr(both[stopped], "_thread", SimpleNamespace(start=lambda: None))
    other = both[1 - stopped]
    look, looks = other._look, iter([late])
    monkeypatch.setattr(other, "_look", lambda client: (time.sleep(next(looks, 0.0)), look(client))[1])
    for peers in both:
        peers.start()
    other.explain(RuntimeError("Timed out waiting 5000ms for recv operation to complete"))
    other.close()
    assert ended == [1]
    assert f"rank {stopped} on {meetings[0].host}: no sign of life" in capsys.readouterr().err


def test_one_that_goes_with_the_store_before_anybody_has_looked_is_named(capsys, monkeypatch):
    """A machine that is killed at once: the ranks know each other from the roll call."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    meetings = [Meeting(60.0, address | {"RANK": str(rank)}) for rank in range(2)]
    meetings[0].host, meetings[1].host = "one", "two"
    roll = [threading.Thread(target=meeting.call, args=({},)) for meeting in meetings]
    for each in roll:
        each.start()
    for each in roll:
        each.join()
    assert meetings[1].hosts() == {0: "one", 1: "two"}
    ended = []
    peers = Peers(meetings[1], patience=60.0, end=ended.append)
    peers.period = 0.05

    def gone(client):
        raise RuntimeError("Broken pipe")

    monkeypatch.setattr(peers, "_look", gone)
    peers.start()
    peers.explain(RuntimeError("Connection reset by peer"))
    peers.close()
    assert ended == [1]
    assert "rank 0 on one: no sign of life, and an exchange failed (Connection reset" in capsys.readouterr().err


@pytest.mark.parametrize("over", [False, True])
def test_one_that_ended_by_an_error_of_its_own_is_named_while_there_is_training_left(capsys, monkeypatch, over):
    """Its own output has the reason: this rank's is an exchange that failed."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    ended = []
    peers = Peers(SimpleNamespace(rank=0, ranks=2, host="one"), patience=0.0, end=ended.append)
    peers.period = 0.01
    now = time.monotonic() + 100
    peers._signs = {0: Sign("7", "step 3", "one", now, now), 1: Sign(LEFT, "step 3", "two", now, now)}
    peers.explain(RuntimeError("Connection closed by peer"), over)
    told = capsys.readouterr().err
    assert ended == ([] if over else [1])
    assert ("rank 1 on two: ended before the others, for a reason that its own output has" in told) is not over
