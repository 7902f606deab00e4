"""What a run asks of the device's allocator, in order, read off a recorded step: the start, then some steps.

The trainer puts the network on the device, has the optimizer's states made (engine.step.optim.allocate_state), and then
takes steps: a batch comes while the one before is still there, micro-batch by micro-batch the passes run, and the
gradients of the first one stay where they were allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.plan.memory.trace import ONCE, Category, Trace

STEPS = 3
"""Steps of a replay: from the second one on each finds what the one before left behind."""
PASSES = 2
"""Micro-batches of a step that are replayed; the others are like the last."""


@dataclass(frozen=True)
class Requests:
    """A sequence for engine.plan.memory.allocator."""

    sizes: list[int]
    """Bytes, a row a request."""
    events: list[int]
    """Row + 1 where it is made, minus that where it is freed."""


@dataclass
class Order:
    """A sequence before its sizes are known: one does for every micro-batch of a trace."""

    there: list[bool]
    """Whether a size is of any bytes: the trace's storages, then what was there beside them."""
    origin: list[int] = field(default_factory=list)
    """Which size each request has."""
    events: list[int] = field(default_factory=list)

    def add(self, origin: int) -> int:
        """A row of its own."""
        self.origin.append(origin)
        return len(self.origin) - 1

    def make(self, rows: Sequence[int]) -> None:
        """Make these requests."""
        self.events += [row + 1 for row in rows]

    def free(self, rows: Sequence[int]) -> None:
        """Free what they were given."""
        self.events += [-row - 1 for row in rows]


class Steps:
    """Turns a trace's rows, which a run meets again and again, into requests that are alive once at a time."""

    def __init__(self, trace: Trace, requests: Order, held: set[int], bucketed: bool) -> None:
        self.requests, self.held, self.bucketed = requests, held, bucketed
        self.gradients = {int(row) for row in (trace.category == Category.GRADIENTS).nonzero()[0]}
        self.alive: dict[int, list[int]] = {}
        """Row of the trace -> its requests that are alive, the newest last."""

    def run(self, events: Sequence[int]) -> None:
        """One pass over some of the step's events."""
        there, out = self.requests.there, self.requests.events
        for event in events:
            row = abs(event) - 1
            if not there[row]:
                continue
            if event < 0:
                if self.alive.get(row):
                    out.append(-self.alive[row].pop() - 1)
                continue
            if row in self.gradients and (self.bucketed or self.alive.get(row)):
                extra = self.requests.add(row)  # it is added to what is there
                out += [extra + 1, -extra - 1]
                continue
            taken = row in self.held or self.alive.get(row)
            mine = self.requests.add(row) if taken else row
            self.alive.setdefault(row, []).append(mine)
            out.append(mine + 1)

    def end(self) -> None:
        """The step is over: what it still holds goes."""
        for rows in self.alive.values():
            self.requests.free(rows)
        self.alive.clear()


def requests_of(
    trace: Trace,
    micro: int,
    share: int,
    cap: float = float("inf"),
    accumulation: int = 1,
    bucketed: bool = False,
    fixed: Sequence[int] = (),
    staged: Sequence[int] = (),
) -> Requests:
    """What a run under this trace asks for.

    trace     of a step whose gradients are made in its backward pass (not `with_gradients_kept`)
    bucketed  gradients are views of DDP's buckets, which are there from the start
    fixed     bytes of what is there from the first step on beside the trace: a library's workspace
    staged    bytes of a batch's forms on its way to the compute dtype, which are gone when it is there
    """
    size, _ = trace.bytes_at(micro, share, cap)
    sizes = np.concatenate([size, fixed, staged]).astype(np.int64)
    key = (sizes != 0).tobytes(), min(PASSES, accumulation), bucketed, len(fixed), len(staged)
    if key not in trace.orders:
        trace.orders[key] = _order(trace, (sizes != 0).tolist(), *key[1:])
    order = trace.orders[key]
    return Requests(sizes[order.origin].tolist(), order.events)


def _order(trace: Trace, there: list[bool], passes: int, bucketed: bool, fixed: int, staged: int) -> Order:
    """The sequence of `requests_of`; the last of the sizes that are there, or not, are `fixed` and `staged`."""
    storages = len(there) - fixed - staged
    requests = Order(there, list(range(storages)))
    alive: dict[int, None] = {}
    for row, sign in zip(trace.storage[: trace.start].tolist(), trace.sign[: trace.start].tolist(), strict=True):
        if sign > 0:
            alive[row] = None
        elif sign < 0:
            alive.pop(row, None)
    kinds = {row: Category(int(trace.category[row])) for row in alive}
    parameters = [row for row, kind in kinds.items() if kind == Category.PARAMETERS]
    inputs = [row for row, kind in kinds.items() if kind == Category.INPUT and there[row]]
    others = [row for row, kind in kinds.items() if kind not in (Category.PARAMETERS, Category.INPUT)]
    parts = list(_parts(trace))
    born = [abs(event) - 1 for _, events in parts for event in events if event > 0]
    gradients = [row for row in dict.fromkeys(born) if trace.category[row] == Category.GRADIENTS]
    first = [requests.add(row) for row in gradients]
    requests.make(parameters)
    requests.make(first)
    requests.make(others)
    if not bucketed:
        requests.free(first)
    requests.make([requests.add(storages + place) for place in range(fixed)])
    forms = [requests.add(storages + fixed + place) for place in range(staged)]
    batches = inputs, [requests.add(row) for row in inputs]
    steps = Steps(trace, requests, set(alive), bucketed)
    for step in range(STEPS):
        requests.make(forms)
        requests.make(batches[step % 2])
        requests.free(forms)
        if step:
            requests.free(batches[1 - step % 2])
        for once, events in parts:
            for _ in range(1 if once else passes):
                steps.run(events)
        steps.end()
    return requests


def _parts(trace: Trace) -> Iterator[tuple[bool, list[int]]]:
    """(whether once a step, its events) of what a step is made of: passes, and the phases of ONCE."""
    events = ((trace.storage + 1) * trace.sign).tolist()
    groups: list[tuple[bool, int]] = []
    for start, name in trace.phases:
        once = name in ONCE
        if not groups or groups[-1][0] != once:
            groups.append((once, start))
    ends = [start for _, start in groups[1:]] + [len(events)]
    starts = [trace.start, *(start for _, start in groups[1:])]
    for (once, _), start, end in zip(groups, starts, ends, strict=True):
        yield once, [event for event in events[start:end] if event]
