"""All ranks start again in their places: where memory ran out and nothing within the process can mend it.

A rank that fails under DeepSpeed, or after the ranks have exchanged gradients, leaves the others waiting in a
collective that it will never join. They cannot be told there, so they are told beside it: through the launcher's
key-value store, which a thread of each rank watches. When all have heard, each replaces itself (execve) by the command
that it was started with and `--resume`. Process numbers stay, so the launcher notices nothing, and the operating system
takes back whatever a rank was stuck in.

The launcher's store still has the addresses of the processes that were; the new ones meet at another port, where the
first rank serves a store of its own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.step.ranks.rounds import AGENT, COUNT

if TYPE_CHECKING:
    from torch.distributed import Store

REASON = "HCR_RELAUNCHED"
"""Environment variable: why this process was started in another's place, as JSON."""
STORE = "HCR_LAUNCHER_STORE"
"""Environment variable: ADDRESS:PORT:COUNT, where the launcher's store is, and how often ranks have started again."""
PERIOD = 0.5
"""Seconds between two looks at the store."""
PATIENCE = 60.0
"""Seconds for all ranks to hear of it."""
REQUEST, HEARD, MEETING, GO = "request", "heard", "meeting", "go"


@dataclass(frozen=True)
class Request:
    """What one rank asks of all."""

    rank: int
    arguments: tuple[str, ...]
    """Put behind the command's own; of two equal flags the last counts."""
    reason: dict[str, Any]
    """Plain values; the new processes find them in `Relaunch.reason`."""


class Relaunch:
    """How this process can be started again. Made before anything changes the environment.

    command  what it was started with: `sys.orig_argv`; none: it never is

    A context manager: left, it follows nobody any more.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        given = os.environ.pop(REASON, None)
        self.reason: dict[str, Any] | None = json.loads(given) if given else None
        self._command, self._environment = list(command), dict(os.environ)
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._store: Store | None = None
        self._left = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="relaunch", daemon=True)

    def watch(self) -> None:
        """From now on follow other ranks' requests; without a launcher that keeps a store there are none."""
        served = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}:0"
        where = os.environ.get(STORE, served if os.environ.get(AGENT) == "True" else "")
        if self.ranks == 1 or not where or not self._command:
            return
        from torch.distributed import PrefixStore, TCPStore

        address, port, count = where.rsplit(":", 2)
        launches = os.environ.get(COUNT, "0")
        self._store = PrefixStore(f"relaunch/{launches}/{count}", TCPStore(address, int(port), is_master=False))
        self._environment |= {STORE: f"{address}:{port}:{int(count) + 1}", AGENT: "False", COUNT: launches}
        self._follower.start()

    def __enter__(self) -> Relaunch:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._store is None:
            return
        if kind is not None and self._store.check([REQUEST]):
            time.sleep(PATIENCE)  # this rank fails because another one has left; its own thread is about to
        self._left.set()
        self._follower.join()  # torch ends a process whose interpreter goes while a thread is in the store

    @property
    def possible(self) -> bool:
        """Whether this process, and all others with it, can be replaced."""
        return bool(self._command) and os.name == "posix" and (self.ranks == 1 or self._store is not None)

    def all_ranks(self, arguments: Sequence[str], reason: dict[str, Any]) -> None:
        """Start again with more arguments, on all ranks; returns only where that cannot be done."""
        if not self.possible:
            return
        request = Request(self.rank, tuple(arguments), reason)
        if self._store is not None and not self._agreed(self._store, request):
            return
        self._replace(request)

    def _agreed(self, store: Store, request: Request) -> bool:
        """Ask all ranks; False where another one was first, or not all have heard in time."""
        first = _request(store.compare_set(REQUEST, "", json.dumps(asdict(request))))
        deadline = time.monotonic() + PATIENCE
        while first.rank == self.rank and time.monotonic() < deadline:
            if store.add(HEARD, 0) == self.ranks:
                store.set(GO, "")
                return True
            time.sleep(PERIOD / 10)
        time.sleep(max(0.0, deadline - time.monotonic()))
        return False

    def _follow(self) -> None:
        """In a thread: wait for a request of another rank and follow it."""
        store = self._store
        assert store is not None
        try:
            while not store.check([REQUEST]):
                if self._left.wait(PERIOD):
                    return
            if self.rank == 0:
                store.set(MEETING, str(unused_port()))
            store.add(HEARD, 1)
            request = _request(store.get(REQUEST))
            if request.rank != self.rank:
                store.wait([GO], timedelta(seconds=PATIENCE))
                self._replace(request)
        except RuntimeError:  # the launcher has gone, or not all have heard: the run ends as it would have
            return

    def _replace(self, request: Request) -> NoReturn:
        """Become the new process."""
        import psutil

        for child in psutil.Process().children(recursive=True):
            child.kill()  # a loader's workers look for their parent's number, which stays
        for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
            if descriptor > 2:
                with suppress(OSError):  # the one that listed them
                    os.set_inheritable(descriptor, False)
        environment = self._environment | {REASON: json.dumps(request.reason)}
        if self._store is not None:
            environment["MASTER_PORT"] = self._store.get(MEETING).decode()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *self._command[1:], *request.arguments], environment)


def unused_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _request(text: str | bytes) -> Request:
    return Request(**json.loads(text))
