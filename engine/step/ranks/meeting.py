"""Ranks meet at the launcher's address before anything is built, and one that cannot go on takes all with it.

Each says who and where it is, what stands in its way, and by what description, code, versions and images it would
train; the first one compares and tells all the same. It needs no GPU and no process group, only the key-value store
that every launch has: torchrun's own, or one that the first rank serves where the group will meet later.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from engine.config import ConfigError, RankError, RunConfig, flatten
from engine.runs.wording import listed
from engine.step.ranks.first_process import RANK_IS, first_line, store_of_first
from engine.step.ranks.rounds import AGENT, COUNT

if TYPE_CHECKING:
    from torch.distributed import Store

FAREWELL = timedelta(seconds=20)
"""For all to have read a verdict before the one that serves the store goes."""
OF_A_MACHINE = ("config", "data.root", "data.workers", "parallel.threads")
"""Fields that may have another value on each machine."""
PERIOD = 0.02
"""Seconds after which the first rank looks again who is there."""
MOST_SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True)
class Present:
    """What one rank says of itself."""

    rank: int
    host: str
    problem: str | None = None
    """Why it cannot go on, in words."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What has to be the same on all, by name."""


class Meeting:
    """This rank's part in it.

    patience  seconds to wait for all

    Raises RankError where there is no store (engine.step.ranks.first_process).
    """

    def __init__(self, patience: float, environment: Mapping[str, str] = os.environ) -> None:
        from torch.distributed import PrefixStore

        self.rank, self.ranks = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
        self.host = socket.gethostname()
        self.patience = timedelta(seconds=patience)
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        serves = self.rank == 0 and environment.get(AGENT) != "True"
        store = store_of_first(address, port, serves, patience)
        self._address = address, port
        self._prefix = f"hcr/meeting/{environment.get(COUNT, '0')}"
        self.store: Store = PrefixStore(self._prefix, store)

    def another_client(self, patience: float) -> Store:
        """The same store over a connection of its own, which waits so many seconds at most: for a thread."""
        from torch.distributed import PrefixStore, TCPStore

        address, port = self._address
        return PrefixStore(self._prefix, TCPStore(address, port, is_master=False, timeout=timedelta(seconds=patience)))

    def call(self, facts: Mapping[str, str], problem: str | None = None, name: str = "roll") -> None:
        """Compare with the other ranks; all call this, with the same `name`.

        Raises ConfigError on all of them, in the same words, where one has a problem or other facts, is missing, or is
        there twice. Whoever comes as a rank that is there already hears it alone where the others have gone on.
        """
        mine = Present(self.rank, self.host, problem, facts)
        try:
            self._refuse_twin(name)
            self.store.set(f"{name}/{self.rank}", json.dumps(asdict(mine)))
            self.store.add(f"{name}/arrived", 1)
            if self.rank == 0:
                present = self._gather(name)
                twins = self.store.get(f"{name}/twins").decode() if self.store.check([f"{name}/twins"]) else None
                self.store.set(f"{name}/came", str(len(present)))
                self.store.set(f"{name}/verdict", twins or verdict(present, self.ranks, self.patience) or "")
            self.store.wait([f"{name}/verdict"], self.patience * 2)
            told = self.store.get(f"{name}/verdict").decode()
            self._take_leave(name)
        except RuntimeError as error:
            raise RankError(f"process {self.rank} lost the first one while ranks met: {first_line(error)}") from None
        if told:
            raise ConfigError(told)

    def _refuse_twin(self, name: str) -> None:
        """Raise RankError where another process is here as this very rank, and let the first rank know."""
        own = f"process {os.getpid()} on {self.host}"
        twin = self.store.compare_set(f"claim/{self.rank}", "", own).decode()
        if twin == own:
            return
        text = (
            f"two processes were started as rank {self.rank}: {twin}, and {own}. Each needs one of its own: {RANK_IS}"
        )
        self.store.set(f"{name}/twins", text)
        self.store.add(f"{name}/arrived", 1)
        raise RankError(text)

    def hosts(self) -> dict[int, str]:
        """The machines of all ranks by the roll; empty before it. Raises RuntimeError where the store is gone."""
        names = [f"roll/{rank}" for rank in range(self.ranks)]
        there = self.store.multi_get(names) if self.store.check(names) else []
        return {rank: json.loads(one)["host"] for rank, one in enumerate(there)}

    def of_first(self, name: str, mine: str) -> str:
        """The first rank's text, on all."""
        if self.rank == 0:
            self.store.set(name, mine)
        self.store.wait([name], self.patience)
        return self.store.get(name).decode()

    def _gather(self, name: str) -> list[Present]:
        """Those who came."""
        present: list[Present] = []
        deadline = time.monotonic() + self.patience.total_seconds()
        while self.store.add(f"{name}/arrived", 0) < self.ranks and time.monotonic() < deadline:
            time.sleep(PERIOD)
        for rank in range(self.ranks):
            if self.store.check([f"{name}/{rank}"]):
                present.append(Present(**json.loads(self.store.get(f"{name}/{rank}"))))
        return present

    def _take_leave(self, name: str) -> None:
        """Say that the verdict was read; the first rank, whose store it is in and may soon be gone, waits for all who
        came."""
        if self.store.add(f"{name}/read", 1) >= int(self.store.get(f"{name}/came")):
            self.store.set(f"{name}/all read", "")
        if self.rank == 0:
            with suppress(RuntimeError):
                self.store.wait([f"{name}/all read"], FAREWELL)


def verdict(present: list[Present], ranks: int, patience: timedelta) -> str | None:
    """Why the run cannot begin, in words for all ranks; None where it can. `present` are in order."""
    if problems := [one for one in present if one.problem is not None]:
        first = problems[0]
        alike = [one for one in problems if one.problem == first.problem]
        everyone = len(alike) == ranks or first.rank == 0
        return f"{first.problem}" if everyone else f"{first.problem} ({_who(alike)})"
    if missing := sorted(set(range(ranks)) - {one.rank for one in present}):
        here = ", ".join(sorted({one.host for one in present}))
        return (
            f"{len(present)} of {ranks} processes came within {patience.total_seconds():g} s, all on {here}; missing: "
            f"rank{'s' * (len(missing) > 1)} {spans(missing)}. Is every machine started, with a rank of its own and "
            "the same MASTER_ADDR and MASTER_PORT, and does its firewall let them through?"
        )
    return _difference(present)


def _difference(present: list[Present]) -> str | None:
    """What is not the same on all, in words: the first fact of which the first rank has another one."""
    first = present[0]
    for name in sorted({name for one in present for name in one.facts}, key=lambda name: (name.count("."), name)):
        others = [one for one in present if one.facts.get(name) != first.facts.get(name)]
        if others:
            mine, theirs = (_shown(one.facts.get(name)) for one in (first, others[0]))
            return (
                f"{_who(others)} would train another run than rank 0 on {first.host}: {name} is {theirs} there and "
                f"{mine} here. All processes need the same flags, files, code, packages and images"
            )
    return None


def _shown(value: str | None) -> str:
    if value is None:
        return "not there"
    return value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}…"


def _who(some: list[Present]) -> str:
    """`ranks 4-7 on node-b`."""
    ranks, hosts = [one.rank for one in some], list(dict.fromkeys(one.host for one in some))
    return f"rank{'s' * (len(ranks) > 1)} {spans(ranks)} on {listed(hosts)}"


def spans(numbers: list[int]) -> str:
    """`0, 4-7` of 0, 4, 5, 6, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, span)) for span in found)


def facts_of(config: RunConfig, sources: str, versions: Mapping[str, str], data: str) -> dict[str, str]:
    """What ranks compare, by names that a person knows: each field of the run, the code, the packages, the images."""
    fields = flatten(asdict(config))
    found = {name: json.dumps(value, default=str) for name, value in fields if name not in OF_A_MACHINE}
    found |= {f"the version of {name}": version for name, version in versions.items()}
    return found | {"the hash of the code": sources, "the hash of the images' names and sizes": data}
