"""Which start of a launch this is, the same number on all its machines.

torchrun starts all ranks anew when one dies, and counts that (TORCHELASTIC_RESTART_COUNT) on the machine where it died:
another one's agent that hears of it before its own rank fails starts its ranks anew without counting (2.15,
agent/server/api.py). What is kept in the launcher's store, which outlives them, under each start's number would not be
found by the others then. So the ranks count for themselves, there: the first one begins a round, and the round counts
when all have come to it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

from engine.step.ranks.first_process import store_of_first

AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Environment variable of torch: whether the launcher serves a store at MASTER_ADDR:MASTER_PORT."""
COUNT = "TORCHELASTIC_RESTART_COUNT"
"""Environment variable of torchrun: how often it has started its processes anew, as this machine knows it."""
ROUNDS = "hcr/rounds"
STRANGE = 20.0
"""Seconds without a newer round after which who has this rank's place in one is no former process of its launch."""
PERIOD = 0.02
"""Seconds after which a rank looks again."""


def agree_on_round(patience: float, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set TORCHELASTIC_RESTART_COUNT to what it is on all machines; all ranks call this once, before they meet.

    patience  seconds to wait for all; who is missing then is for the meeting to say, and the variable stays

    Raises RankError where there is no store. Does nothing where no launcher starts ranks anew.
    """
    rank, ranks = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if environment.get(AGENT) != "True" or ranks == 1:
        return
    store = store_of_first(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), False, patience)
    own, began = f"process {os.getpid()} on {socket.gethostname()}", time.monotonic()
    number, joined, news = store.add(ROUNDS, int(rank == 0)), 0, began
    while time.monotonic() - began < patience:
        if joined and store.check([f"hcr/round/{joined}/agreed"]):  # before a newer one is looked at
            environment[COUNT] = store.get(f"hcr/round/{joined}/agreed").decode()
            return
        if number > joined:
            place = f"hcr/round/{number}"
            if store.compare_set(f"{place}/claim/{rank}", "", own).decode() == own:
                joined = number
                store.set(f"{place}/count/{rank}", environment.get(COUNT, "0"))
                store.add(f"{place}/came", 1)
            elif time.monotonic() - news > STRANGE:
                store.set(f"{place}/strange", "")
        if rank == 0 and store.add(f"hcr/round/{joined}/came", 0) >= ranks:
            counted = max(int(store.get(f"hcr/round/{joined}/count/{one}")) for one in range(ranks))
            agreed = max(joined - 1, counted)  # a store that was begun anew does not know of earlier rounds
            store.set(f"hcr/round/{joined}/agreed", str(agreed))
            store.add(ROUNDS, agreed - (joined - 1))
        elif number and store.check([f"hcr/round/{number}/strange"]):
            return
        else:
            time.sleep(PERIOD)
        if rank and (newest := store.add(ROUNDS, 0)) != number:
            number, news = newest, time.monotonic()
