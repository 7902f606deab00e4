"""Whether the other ranks are still there: each shows a sign of life in the meeting's store, and looks at theirs.

An exchange over a network that was cut, or with a process that hangs, waits without a word until its time is up, and
then names a socket. Here the rank and its machine are named, the processes that wait end, and none is left behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.step.ranks.meeting import Meeting, spans

if TYPE_CHECKING:
    from torch.distributed import Store

FEW = 64
"""Up to so many ranks all look at all of them, once a second; of more, one on each machine, every five seconds."""
SUSPECT = 3
"""Periods without a sign after which a rank may be named as the reason of a failed exchange."""
LEFT, UNSEEN = "left", "unseen"
"""In place of a sign's number: of a rank that has ended as it should, and of one that has shown none yet."""


@dataclass
class Sign:
    """The last one of a rank."""

    text: str
    doing: str
    host: str
    seen: float
    """When it was new, by this process's clock."""
    since: float
    """When it began what it does."""


class Peers:
    """A thread that follows a meeting's ranks from `start` to `close`.

    patience  seconds without a sign of one, or in which one does something else than those who wait for it
    end       ends this process, given an exit code
    """

    def __init__(self, meeting: Meeting, patience: float, end: Callable[[int], None] = os._exit) -> None:
        self.rank, self.ranks, self.host, self.patience = meeting.rank, meeting.ranks, meeting.host, patience
        self.doing = "setting up"
        self.advice = ""
        """What the person does next, behind the message."""
        self._meeting, self._end = meeting, end
        self.speaks = os.environ.get("LOCAL_RANK", "0") == "0"
        self.period = 1.0 if self.ranks <= FEW else 5.0
        self._looks = self.speaks or self.ranks <= FEW
        self._signs: dict[int, Sign] = {}
        self._looked = 0
        """How often all signs were read."""
        self._lost = False
        """Whether the store did not answer when it was last asked."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="peers", daemon=True)

    def start(self) -> None:
        """From now on.

        The first sign is there before the rank joins an exchange, and so are the others' names: one that goes at once,
        the store with it, is missed by name, too.
        """
        now = time.monotonic()
        with suppress(RuntimeError):  # the thread tries again
            self._show(self._meeting.store, "0")
            for rank, host in self._meeting.hosts().items() if self._looks else ():
                self._signs[rank] = Sign(UNSEEN, self.doing, host, now, now)
        self._thread.start()

    def is_doing(self, what: str) -> None:
        """What the main thread is at; the others see it with the next sign."""
        self.doing = what

    def close(self) -> None:
        """This rank ends as it should: the others need not look for it."""
        if self._thread.is_alive():
            self._left.set()
            self._thread.join(self.period * SUSPECT)

    def explain(self, error: RuntimeError, over: bool = False) -> None:
        """End where an exchange failed because a rank has gone; returns where all are there, and it is another error.

        over  ranks may have left by now: training has ended

        A look at it takes a few periods, on a busy machine as long as its thread needs for as many looks. Nothing can
        be tidied up together any more.
        """
        if not self._looks:
            return
        began, enough = time.monotonic(), self._looked + SUSPECT + 2
        time.sleep(self.period * (SUSPECT + 1))
        while self._looked < enough and not self._lost and time.monotonic() - began < self.patience:
            time.sleep(self.period / 10)
        failed = f"and an exchange failed ({next(iter(str(error).splitlines()), '')[:160]})"
        if silent := self._silent(self.period * SUSPECT):
            self._leave(self._words(silent, f"no sign of life, {failed}"))
        elif left := [] if over else [rank for rank, sign in self._signs.items() if sign.text == LEFT]:
            self._leave(self._words(left, f"ended before the others, for a reason that its own output has, {failed}"))

    def _follow(self) -> None:
        client, count, heard = None, 0, time.monotonic()
        while True:
            left = self._left.wait(self.period if count else 0.0)
            count += 1
            try:
                client = client or self._meeting.another_client(self.period * SUSPECT)
                self._show(client, LEFT if left else str(count))
                heard, self._lost = self._look(client), False
            except (RuntimeError, ValueError):
                client, self._lost = None, True  # what is under way on it is lost
            if left:
                return
            if self._looks and (why := self._judge(heard)):
                self._leave(why)

    def _show(self, client: Store, text: str) -> None:
        """This rank's sign of life."""
        client.set(f"sign/{self.rank}", json.dumps([text, self.doing, self.host]))

    def _look(self, client: Store) -> float:
        """Read everyone's sign; returns when."""
        now = time.monotonic()
        if self._looks:
            shown = {rank for rank, sign in self._signs.items() if sign.text != UNSEEN}
            present = [rank for rank in range(self.ranks) if rank in shown or client.check([f"sign/{rank}"])]
            for rank, raw in zip(present, client.multi_get([f"sign/{rank}" for rank in present]), strict=True):
                text, doing, host = json.loads(raw)
                before = self._signs.get(rank)
                if before is None or before.text != text:
                    since = before.since if before is not None and before.doing == doing else now
                    self._signs[rank] = Sign(text, doing, host, now, since)
            self._looked += 1
        return now

    def _silence(self, sign: Sign) -> float:
        return 0.0 if sign.text == LEFT else time.monotonic() - sign.seen

    def _silent(self, seconds: float) -> list[int]:
        """Ranks without a sign for so long; where this machine is cut off, those of the others."""
        old = [rank for rank, sign in self._signs.items() if self._silence(sign) > seconds]
        return [rank for rank in old if self.rank not in old or self._signs[rank].host != self.host]

    def _judge(self, heard: float) -> str | None:
        """Why there is no use in waiting on, in words; None while there is."""
        now = time.monotonic()
        if now - heard > self.patience:
            first = self._signs.get(0)
            where = f" on {first.host}" if first else ""
            return f"the store of rank 0{where} has not answered for {now - heard:.0f} s: that machine, or the network"
        if silent := self._silent(self.patience):
            return self._words(
                silent, f"no sign of life for {self.patience:g} s: the process, its machine or the network"
            )
        return self._hanging(now)

    def _hanging(self, now: float) -> str | None:
        """Those who have long been at what fewer do than wait for it."""
        there = {rank: sign for rank, sign in self._signs.items() if sign.text != LEFT}
        if len(there) < self.ranks or min(now - sign.since for sign in there.values()) < self.patience:
            return None
        by_doing: dict[str, list[int]] = {}
        for rank, sign in there.items():
            by_doing.setdefault(sign.doing, []).append(rank)
        if len(by_doing) < 2:
            return None  # all do the same: compiling, perhaps
        doing = min(by_doing, key=lambda one: (one.startswith("step"), len(by_doing[one])))
        others = max((one for one in by_doing if one != doing), key=lambda one: len(by_doing[one]))
        return self._words(by_doing[doing], f"“{doing}” for {self.patience:g} s, while the others wait in “{others}”")

    def _words(self, ranks: list[int], what: str) -> str:
        hosts = ", ".join(dict.fromkeys(self._signs[rank].host for rank in ranks))
        return f"rank{'s' * (len(ranks) > 1)} {spans(sorted(ranks))} on {hosts}: {what}"

    def _leave(self, why: str) -> None:
        """Say it once a machine, and end: the main thread waits where nothing reaches it.

        The machine's first rank says it, and where that is the one that hangs, the next that is there.
        """
        before = [sign for rank, sign in self._signs.items() if rank < self.rank and sign.host == self.host]
        if self.speaks or all(one.text == LEFT or self._silence(one) > self.period * SUSPECT for one in before):
            print(f"error: {why}. {self.advice}", file=sys.stderr, flush=True)
        else:
            time.sleep(self.period)
        self._end(1)
