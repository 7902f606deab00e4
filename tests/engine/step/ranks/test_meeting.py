"""Ranks that meet: one's problem is everybody's, and who would train another run is named."""

import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from engine.config import ConfigError, DataConfig, OptimConfig, RankError, RunConfig
from engine.step.ranks import meeting
from engine.step.ranks.meeting import Meeting, Present, facts_of, verdict

PATIENCE = timedelta(seconds=5)


@pytest.fixture
def address() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


def met(address, says, patience: float = 60) -> list[str]:
    """What each rank is told, in threads; `says` gives (facts, problem) of each."""
    told = [""] * len(says)

    def attend(rank: int) -> None:
        try:
            environment = address | {"RANK": str(rank), "WORLD_SIZE": str(len(says))}
            Meeting(patience, environment).call(*says[rank])
        except ConfigError as error:
            told[rank] = str(error)

    ranks = [threading.Thread(target=attend, args=(rank,)) for rank in range(len(says)) if says[rank] is not None]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return told


def test_those_who_agree_hear_nothing(address):
    assert met(address, [({"seed": "0"}, None)] * 3) == ["", "", ""]


def test_all_are_told_the_same_of_one_that_differs(address):
    told = met(address, [({"seed": "0"}, None), ({"seed": "0"}, None), ({"seed": "1"}, None)])
    assert len(set(told)) == 1
    assert f"rank 2 on {socket.gethostname()} would train another run than rank 0" in told[0]
    assert "seed is 1 there and 0 here" in told[0]


def test_a_problem_of_one_ends_all(address):
    told = met(address, [({}, None), ({}, "no photos here")])
    assert told == [f"no photos here (rank 1 on {socket.gethostname()})"] * 2


def test_who_did_not_come_is_named(address):
    told = met(address, [({}, None), ({}, None), None], patience=2)
    assert all("2 of 3 processes came within 2 s" in text and "missing: rank 2." in text for text in told[:2])


def test_who_did_not_come_is_not_waited_for_once_more(address, monkeypatch):
    """For the others to have read the verdict, they alone."""
    monkeypatch.setattr(meeting, "FAREWELL", timedelta(minutes=5))
    began = time.monotonic()
    told = met(address, [({}, None), ({}, None), None], patience=2)
    assert all("missing: rank 2." in text for text in told[:2])
    assert time.monotonic() - began < 300


def test_two_processes_of_one_rank_are_named(address, monkeypatch):
    """Of three ranks one is missing and another one there twice: nobody waits for the missing one."""
    own, told = meeting.os.getpid(), {}

    def attend(process: int, rank: int, late: bool) -> None:
        try:
            here = Meeting(300, address | {"RANK": str(rank), "WORLD_SIZE": "3"})
            if late:
                here.store.wait(["claim/1"])
                monkeypatch.setattr(meeting.os, "getpid", lambda: own + 1)
            here.call({})
        except ConfigError as error:
            told[process] = error

    ranks = [threading.Thread(target=attend, args=each) for each in ((0, 0, False), (1, 1, False), (2, 1, True))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    words = f"two processes were started as rank 1: process {own} on {socket.gethostname()}, and process {own + 1} on"
    assert all(words in str(told[process]) for process in range(3))
    assert [isinstance(told[process], RankError) for process in range(3)] == [False, False, True]


def test_a_port_that_is_in_use_is_told_by_the_first_rank():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(RankError, match=f"MASTER_PORT {port} is in use.*rank 0 as well"):
            Meeting(2, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"})


def test_no_answer_is_told_by_who_waits_for_it(address):
    with pytest.raises(RankError, match="no answer from the first process"):
        Meeting(1, address | {"RANK": "1", "WORLD_SIZE": "2"})


def test_machines_and_spans_are_named():
    present = [Present(rank, f"node-{rank // 4}", facts={"optim.lr": str(rank // 4)}) for rank in range(8)]
    text = verdict(present, 8, PATIENCE)
    assert text is not None and text.startswith("ranks 4-7 on node-1 would train another run than rank 0 on node-0")
    alike = [replace(one, facts={}, problem="no data") for one in present]
    assert verdict(alike, 8, PATIENCE) == "no data"
    assert "missing: ranks 8-9" in (verdict([replace(one, facts={}) for one in present], 10, PATIENCE) or "")


def test_what_is_compared():
    """Every field but those that are a machine's own, the code, the packages, the images."""
    one = facts_of(RunConfig(), "abc", {"torch": "2.11"}, "d1")
    assert {"optim.lr", "seed", "the version of torch", "the hash of the code"} < one.keys()
    there = RunConfig(data=DataConfig(root="/elsewhere", workers=3))
    assert facts_of(there, "abc", {"torch": "2.11"}, "d1") == one
    assert facts_of(RunConfig(optim=OptimConfig(lr=0.5)), "abc", {"torch": "2.11"}, "d1") != one
    assert facts_of(RunConfig(), "abd", {"torch": "2.11"}, "d1") != one
