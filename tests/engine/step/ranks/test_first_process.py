"""Where the first process cannot be found it is told in one line, of Python's own, and soon."""

import socket
import threading

import pytest

from engine.config import RankError
from engine.step.ranks import first_process
from engine.step.ranks.first_process import store_of_first


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def no_torch(monkeypatch):
    """torch's store is not asked: it would print C++ frames, and abort a process that ends meanwhile."""

    def asked(*_):
        raise AssertionError("torch was asked for a store")

    monkeypatch.setattr(first_process, "_within", asked)


@pytest.mark.parametrize("serves", [False, True])
def test_a_name_that_nobody_knows(no_torch, free_port, serves):
    with pytest.raises(RankError, match=r"MASTER_ADDR first\.invalid is no name or address that .* knows"):
        store_of_first("first.invalid", free_port, serves, 0.3)


def test_nobody_there(no_torch, free_port):
    with pytest.raises(RankError, match=r"no answer .* within 0.3 s: is it started"):
        store_of_first("127.0.0.1", free_port, False, 0.3)


def test_an_address_that_is_another_machines(no_torch, free_port, monkeypatch):
    def refused(*_, **__):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(first_process.socket, "create_connection", refused)
    with pytest.raises(RankError, match=r"does not lead to the first process, .* \(Connection refused\)"):
        store_of_first("10.0.0.9", free_port, True, 0.3)


def test_a_port_that_needs_another_user(no_torch, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(first_process.socket, "create_server", refused)
    with pytest.raises(RankError, match=r"cannot listen at MASTER_PORT 80 on .*: Permission denied"):
        store_of_first("127.0.0.1", 80, True, 0.3)


def test_something_else_that_never_greets(monkeypatch):
    monkeypatch.setattr(first_process, "ATTEMPT", 0.1)
    monkeypatch.setattr(first_process, "GREETING", 0.0)
    words = r"something else answers at .* and is no first process"
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(RankError, match=words):
        store_of_first("127.0.0.1", other.getsockname()[1], False, 5)


def test_who_comes_before_the_first_process_finds_it(free_port):
    found = []
    early = threading.Thread(target=lambda: found.append(store_of_first("127.0.0.1", free_port, False, 60)))
    early.start()
    first = store_of_first("127.0.0.1", free_port, True, 60)
    early.join()
    first.set("here", "yes")
    assert found[0].get("here") == b"yes" and found[0].timeout.total_seconds() == 60
