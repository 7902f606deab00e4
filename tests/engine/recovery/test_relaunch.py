"""How ranks agree to start again, and as what; that they really do is tested in tests/launch/test_relaunch.py."""

import json
import os
import sys
import threading
import time

import psutil
import pytest
from torch.distributed import TCPStore

from engine.recovery import relaunch
from engine.recovery.relaunch import AGENT, REASON, STORE, Relaunch
from tests.waiting import PATIENCE, until

COMMAND = ["python", "-u", "train.py", "--resume", "old"]
FAILURE = {"event": "out_of_memory", "step": 3}


@pytest.fixture
def replaced(monkeypatch):
    """What processes would have become: (program, arguments, environment), in a list."""
    found: list = []
    monkeypatch.setattr(os, "execve", lambda *what: found.append(what))
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
    return found


@pytest.fixture
def ranks(monkeypatch):
    """Makes one rank's Relaunch of two, under a launcher that serves a store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    made = []

    def make(rank: int) -> Relaunch:
        settings = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, AGENT: True}
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        made.append(Relaunch(COMMAND))
        made[-1].watch()
        return made[-1]

    yield make
    for each in made:
        each.__exit__(None)


def test_one_process_becomes_its_own_command_with_more_flags(monkeypatch, replaced):
    """In the environment that it was started with, not what it made of it."""
    for name in ("RANK", "WORLD_SIZE", REASON):
        monkeypatch.delenv(name, raising=False)
    one = Relaunch(COMMAND)
    monkeypatch.setenv("SET_LATER", "1")
    with one:
        one.watch()
        one.all_ranks(["--resume", "new"], FAILURE)
    ((program, arguments, environment),) = replaced
    assert program == arguments[0] == sys.executable
    assert arguments[1:] == ["-u", "train.py", "--resume", "old", "--resume", "new"]
    assert "SET_LATER" not in environment and json.loads(environment[REASON]) == FAILURE
    monkeypatch.setenv(REASON, environment[REASON])
    assert Relaunch(COMMAND).reason == FAILURE
    assert REASON not in os.environ  # its own children were not started for that


def test_nobody_is_replaced_by_nothing(replaced):
    one = Relaunch()
    assert not one.possible
    one.all_ranks(["--resume", "new"], FAILURE)
    assert not replaced


def test_all_ranks_become_the_same_and_meet_at_another_port(ranks, replaced):
    ranks(0)  # follows
    second = ranks(1)
    old = os.environ["MASTER_PORT"]
    second.all_ranks(["--resume", "new"], FAILURE)
    until(lambda: len(replaced) == 2)
    ports = {environment["MASTER_PORT"] for _, _, environment in replaced}
    assert len(ports) == 1 and ports != {old}
    for _, arguments, environment in replaced:
        assert arguments[-2:] == ["--resume", "new"]
        assert environment[AGENT] == "False" and environment[STORE] == f"127.0.0.1:{old}:1"


def test_of_two_that_ask_at_once_the_first_is_followed(ranks, replaced, monkeypatch):
    monkeypatch.setattr(relaunch, "PATIENCE", PATIENCE)
    both = [ranks(0), ranks(1)]
    for each in both:  # the one that is not followed waits for its end, which does not come here
        threading.Thread(target=each.all_ranks, args=([f"--resume={each.rank}"], FAILURE), daemon=True).start()
    until(lambda: len(replaced) == 2)
    assert len({arguments[-1] for _, arguments, _ in replaced}) == 1


def test_a_rank_that_does_not_hear_leaves_everything_as_it_was(ranks, replaced, monkeypatch):
    monkeypatch.setattr(relaunch, "PATIENCE", 1.0)
    first = ranks(0)
    began = time.monotonic()
    first.all_ranks(["--resume", "new"], FAILURE)
    assert not replaced and time.monotonic() - began > 0.9


def test_without_a_launcher_that_keeps_a_store_several_ranks_cannot(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(AGENT, raising=False)
    with Relaunch(COMMAND) as one:
        one.watch()
        assert not one.possible
