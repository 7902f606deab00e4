"""torchrun's machines count restarts each for themselves; the ranks' own count is the same on all."""

import socket
import threading
import time

import pytest

from engine.step.ranks import rounds
from engine.step.ranks.rounds import agree_on_round


@pytest.fixture
def store(monkeypatch):
    """A launcher's store, which outlives the ranks."""
    from torch.distributed import HashStore

    kept = HashStore()
    monkeypatch.setattr(rounds, "store_of_first", lambda *_: kept)
    return kept


@pytest.fixture
def served(store):
    """The environment that the launcher gives them."""
    return {"MASTER_ADDR": "first", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}


class Start:
    """The ranks of one start, in threads; `counts` is what each one's machine says, None for one that never comes."""

    def __init__(self, address, monkeypatch, counts, number):
        monkeypatch.setattr(rounds.os, "getpid", lambda: number)  # another process than in the start before
        self.environments = [
            {**address, "RANK": str(rank), "WORLD_SIZE": str(len(counts)), "TORCHELASTIC_RESTART_COUNT": count}
            for rank, count in enumerate(counts)
        ]
        self.threads = [threading.Thread(target=agree_on_round, args=(60, each)) for each in self.environments]

    def begin(self, *ranks):
        for rank in ranks:
            self.threads[rank].start()

    def agreed(self):
        for thread in self.threads:
            thread.join()
        return [each["TORCHELASTIC_RESTART_COUNT"] for each in self.environments]


def test_machines_that_count_differently_agree(served, monkeypatch):
    """The first machine did not count the second start. Whoever comes first in it waits for the others."""
    first = Start(served, monkeypatch, ["0", "0", "0"], 1)
    first.begin(2, 0, 1)
    assert first.agreed() == ["0", "0", "0"]
    second = Start(served, monkeypatch, ["0", "1", "1"], 2)
    second.begin(1, 2, 0)
    assert second.agreed() == ["1", "1", "1"]
    third = Start(served, monkeypatch, ["0", "1", "1"], 3)
    third.begin(0, 1, 2)
    assert third.agreed() == ["2", "2", "2"]


def test_a_start_that_broke_off_is_left_for_the_next(store, served, monkeypatch):
    """Its first rank came and was killed; the second one of the next start is there before the first is again."""
    store.add(rounds.ROUNDS, 1)
    store.set("hcr/round/1/claim/0", "process 1 on another")
    store.add("hcr/round/1/came", 1)
    start = Start(served, monkeypatch, ["1", "1"], 2)
    start.begin(1)
    while store.add("hcr/round/1/came", 0) < 2:
        time.sleep(0.01)
    start.begin(0)
    assert start.agreed() == ["1", "1"]


def test_a_new_store_takes_over_the_count(served, monkeypatch):
    start = Start(served, monkeypatch, ["0", "3"], 1)
    start.begin(0, 1)
    assert start.agreed() == ["3", "3"]
    following = Start(served, monkeypatch, ["0", "3"], 2)
    following.begin(0, 1)
    assert following.agreed() == ["4", "4"]


def test_two_processes_of_one_rank_are_left_to_the_meeting(store, served, monkeypatch):
    monkeypatch.setattr(rounds, "STRANGE", 0.0)
    start = Start(served, monkeypatch, ["0", "0", "0"], 1)
    start.begin(0, 1)
    while store.add("hcr/round/1/came", 0) < 2:
        time.sleep(0.01)
    monkeypatch.setattr(rounds.os, "getpid", lambda: 2)
    agree_on_round(60, {**start.environments[1]})
    start.threads[0].join()
    start.threads[1].join()
    assert [each["TORCHELASTIC_RESTART_COUNT"] for each in start.environments] == ["0", "0", "0"]


@pytest.mark.parametrize("more", [{"WORLD_SIZE": "1"}, {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "False"}])
def test_where_nobody_starts_ranks_anew_nothing_is_asked(more, monkeypatch):
    monkeypatch.setattr(rounds, "store_of_first", None)
    agree_on_round(60, {"RANK": "0", "MASTER_ADDR": socket.gethostname(), "MASTER_PORT": "1", **more})
