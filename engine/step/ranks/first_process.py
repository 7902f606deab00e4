"""The way to the first process: its key-value store, served by itself or by its launcher at MASTER_ADDR:MASTER_PORT.

Python looks first whether anybody is there. torch's store tells the same of a name or a port that nobody has by a page
of C++ frames, and a process that ends while it still tries is aborted (2.15).
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from engine.config import RankError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

RANK_IS = "RANK, which torchrun takes from --node-rank and accelerate from --machine_rank"
"""What says which rank a process is, for messages."""
ATTEMPT = 10.0
"""Seconds that torch may take for a connection where somebody answers; it tries again for twice as long at most."""
GREETING = 5.0
"""Seconds more until who answers and says nothing is taken for something else."""
PAUSE = 0.2
"""Seconds until the next look whether somebody is there."""


def store_of_first(address: str, port: int, serves: bool, patience: float) -> TCPStore:
    """The store at an address, for which this process waits so many seconds.

    serves  this is the first process, and no launcher of its serves one

    Raises RankError where there is none: for a port that is in use, a name that nobody knows, no answer there, or one
    of something else.
    """
    from torch.distributed import DistNetworkError, DistStoreError, TCPStore

    deadline, where = time.monotonic() + patience, f"MASTER_ADDR {address}, MASTER_PORT {port}"
    listening = _listen(port) if serves else None
    each = min(ATTEMPT, max(1.0, patience / 3))
    while True:
        _knock(address, port, serves, deadline, patience)
        options = {"is_master": serves, "wait_for_workers": False, "timeout": timedelta(seconds=each)}
        if listening is not None:
            options["master_listen_fd"] = listening.detach()  # torch closes it with its server
            listening = None
        try:
            store = _within(3 * each + GREETING, lambda: TCPStore(address, port, multi_tenant=True, **options))  # noqa: B023
        except TimeoutError:
            raise RankError(f"something else answers at {where}, and is no first process: is that its port?") from None
        except (DistNetworkError, DistStoreError) as error:
            if serves or time.monotonic() > deadline:
                raise RankError(
                    f"what answers at {where} is no first process of this launch ({first_line(error)}): is that its "
                    "address, and its port?"
                ) from None
            time.sleep(each)
            continue
        store.set_timeout(timedelta(seconds=patience))
        return store


def _listen(port: int) -> socket.socket:
    """A socket at the port, on all of this machine's addresses."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=socket.SOMAXCONN, dualstack_ipv6=both)
    except OSError as error:
        here = socket.gethostname()
        if error.errno != errno.EADDRINUSE:
            raise RankError(
                f"the first process cannot listen at MASTER_PORT {port} on {here}: {os.strerror(error.errno or 0)}"
            ) from None
        raise RankError(
            f"MASTER_PORT {port} is in use on {here}: another launch may still be there, or a process that was started "
            f"as rank 0 as well ({RANK_IS}); give another port (accelerate: --main_process_port, torchrun: "
            "--master_port)"
        ) from None


def _knock(address: str, port: int, serves: bool, deadline: float, patience: float) -> None:
    """Return when a connection was made; raises RankError where none is until then."""
    while True:
        try:
            socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + PAUSE > deadline:
                raise RankError(_unreachable(address, port, serves, patience, error)) from None
            time.sleep(PAUSE)


def _unreachable(address: str, port: int, serves: bool, patience: float, error: OSError) -> str:
    """Why nobody is there, in words."""
    here = socket.gethostname()
    if isinstance(error, socket.gaierror):
        return f"MASTER_ADDR {address} is no name or address that {here} knows ({error.strerror})"
    if serves:
        return (
            f"MASTER_ADDR {address} does not lead to the first process, which is on {here} and listens at MASTER_PORT "
            f"{port}: no connection within {patience:g} s ({error.strerror or error})"
        )
    return (
        f"no answer from the first process at MASTER_ADDR {address}, MASTER_PORT {port} within {patience:g} s: is it "
        "started, and is that its address?"
    )


def _within(seconds: float, connect: Callable[[], TCPStore]) -> TCPStore:
    """A store, or TimeoutError: at a port of something else, torch waits for its greeting without an end (2.15)."""
    found: list[TCPStore | Exception] = []

    def attempt() -> None:
        try:
            found.append(connect())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def first_line(error: Exception) -> str:
    """What it says of itself, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
