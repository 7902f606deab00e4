"""Which plan to train by: candidates are simulated, and the cheapest that fits is taken.

Order: what keeps the function and the activations on the device (precision, recompute) comes before micro-batches,
which change what BatchNorm sees, and those come before offload to the host. Without BatchNorm micro-batches change
nothing and compete on cost alone. The global batch is always what was asked for.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from engine.config.byte_sizes import enough
from engine.plan.memory.cuda import workspace_cap
from engine.plan.memory.simulate import Untraceable
from engine.plan.memory.trace import Category
from engine.plan.segments import best_segments
from engine.plan.simulated import Simulated
from engine.plan.workload import Candidate, Result, Workload
from engine.step.recompute import REWRITES, Policy, by_block, first_blocks

logger = logging.getLogger("hcr")

Stage = Callable[[str, int, int, bool], Iterator["Candidate"]]
PARTITIONS = (1.0, 0.5)
"""activation_memory_budget under torch.compile: its default, and half of the way to recomputing everything."""
TRIES = 4
"""Simulations spent on finding how many first blocks to recompute, or which micro-batch a partition really fits."""


class Search(Simulated):
    """Looks through a workload's candidates.

    precisions  in order of preference; candidates of a later one are looked at where none of an earlier one fits
    policies    kinds of recompute that may be used; None is all
    micro       the only micro-batch size; 0 is any
    offload     whether activations may go to the host; `only_offload`: whether they must
    compiled    also look at the graphs that torch.compile cuts, which takes seconds a network
    """

    def __init__(
        self,
        workload: Workload,
        precisions: Iterable[str],
        policies: tuple[str, ...] | None = None,
        micro: int = 0,
        offload: bool = True,
        only_offload: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(workload)
        self.precisions, self.micro = tuple(precisions), micro
        self.kinds = policies or ("none", "first", "block", "segments", "nested")
        self.offload, self.only_offload, self.compiled = offload, only_offload, compiled

    def recomputing(self, found: Candidate, cap: int) -> list[Candidate]:
        """What a candidate that keeps all on the device becomes with more recompute, as it is split."""
        policies = [] if found.policy.offload else self._recomputing(found.precision)
        return [self.candidate(found.precision, policy, found.accumulation, cap) for policy in policies]

    def policies(self, precision: str, offload: bool = False) -> Iterator[Policy]:
        """What may be recomputed, cheapest kinds first, without `first` (which depends on the budget).

        No partitions with `offload`, as a compiled backward pass fetches nothing back, nor under ZeRO-3: not compiled.
        """
        if "none" in self.kinds:
            yield Policy()
        for budget in PARTITIONS if self.compiled and not offload and self.workload.zero_stage < 3 else ():
            if self._simulates(precision, Policy(partition=budget)):
                yield Policy(partition=budget)
        yield from self._recomputing(precision)
        # Not timed on a GPU yet: behind everything that was, and without a second network on a CPU.
        for name in REWRITES if "none" in self.kinds and self.fusable and self.workload.cuda else ():
            policy = Policy(rewrite=name)
            if self._simulates(precision, policy) and self._saves_less(precision, policy):
                yield policy

    def _saves_less(self, precision: str, policy: Policy) -> bool:
        """Whether a policy keeps less than none does."""
        kept = [self.trace(precision, one).saved(self.workload.share) for one in (policy, Policy())]
        return kept[0] < kept[1]

    def _recomputing(self, precision: str) -> Iterator[Policy]:
        """Kinds of recompute of whole networks."""
        if not self.units:
            return
        block = by_block(self.units)
        wanted = {"segments", "nested"} & set(self.kinds)
        best = best_segments(self.watched(precision)) if wanted and self.watched(precision) else block
        kinds = {"block": block, "segments": best}
        if best.segments == block.segments:
            kinds.pop("segments" if "block" in self.kinds else "block")
        for kind, policy in kinds.items():
            if kind in self.kinds and self._simulates(precision, policy):
                yield policy
        if "nested" in self.kinds and self._simulates(precision, best):
            nested = Policy("nested", self._lower(precision, best, block).segments, nested=True)
            if self._simulates(precision, nested):
                yield nested

    def _simulates(self, precision: str, policy: Policy) -> bool:
        """Whether a policy can be simulated; one that cannot is left out, and that is said."""
        try:
            self.trace(precision, policy)
        except Untraceable as error:
            logger.info("recompute %s is left out: %s", policy.describe(), error)
            return False
        return True

    def _lower(self, precision: str, best: Policy, block: Policy) -> Policy:
        """Whichever peaks lower: the dynamic program's own model is not exact."""
        if best.segments == block.segments:
            return block
        peaks = [self.trace(precision, policy).peak(self.workload.share) for policy in (best, block)]
        return best if peaks[0] <= peaks[1] else block

    def first(self, precision: str, budget: int, cap: int) -> Candidate | None:
        """The fewest first blocks whose recompute fits the whole share, if there are."""
        if "first" not in self.kinds or not self.units:
            return None
        load = self.workload
        plain = self.candidate(precision, Policy(), 1, cap)
        units = self.watched(precision)
        if not units:
            return None
        saved, count = 0.0, 0
        while count < self.units - 1 and plain.peak - saved * load.share > budget:
            saved += units[count].inner
            count += 1
        for tried in range(TRIES):
            if not 0 < count < self.units:
                return None
            found = self.candidate(precision, first_blocks(count), 1, cap)
            if found.peak <= budget:
                return self._fewer(found, budget, cap, TRIES - tried - 1)
            count += max(1, self.units // 10)
        return None

    def _fewer(self, found: Candidate, budget: int, cap: int, tries: int) -> Candidate:
        """The same with as few blocks as fit: what one keeps is not what its recompute takes off the peak."""
        for _ in range(tries):
            count = len(found.policy.segments) - 1
            less = self.candidate(found.precision, first_blocks(count), 1, cap) if count else found
            if less is found or less.peak > budget:
                break
            found = less
        return found

    def split(self, precision: str, policy: Policy, budget: int, cap: int) -> Candidate | None:
        """The largest micro-batches that fit with a policy, if any do; all of them have the same shape."""
        counts = self.accumulations()

        def have_room(count: int) -> bool:
            micro = -(-self.workload.share // count)
            return self.tensors(precision, policy, micro, count, cap)[0].peak <= budget

        def fits(count: int) -> bool:
            micro = -(-self.workload.share // count)
            return self.timeline(precision, policy, micro, count, cap, budget).peak <= budget

        # a replay is dear: it begins where the tensors alone fit, and mostly ends there
        where = bisect.bisect_left(counts, True, key=have_room)
        if where < len(counts) and not fits(counts[where]):
            where = bisect.bisect_left(counts, True, where + 1, key=fits)
        return self.candidate(precision, policy, counts[where], cap) if where < len(counts) else None

    def confirmed(self, found: Candidate, budget: int, cap: int) -> Candidate:
        """A candidate as its very micro-batch is cut, or the first with smaller ones that fits after all."""
        counts = self.accumulations()
        smaller = counts[bisect.bisect_right(counts, found.accumulation) :]
        for count in [found.accumulation, *smaller][:TRIES]:
            self.trace(found.precision, found.policy, only=-(-self.workload.share // count))
            found = self.candidate(found.precision, found.policy, count, cap)
            if found.peak <= budget:
                break
        return found

    def _certain(self, found: Candidate) -> bool:
        """Whether its recording holds for its micro-batch: what a budget under 1 keeps depends on that."""
        return not 0 < found.policy.partition < 1 or bool(self._only(found.precision, found.policy, found.micro))

    def accumulations(self) -> list[int]:
        """Numbers of micro-batches that give different sizes, fewest first."""
        share = self.workload.share
        if self.micro:
            return [-(-share // self.micro)]
        sizes = dict.fromkeys(-(-share // count) for count in range(2, share + 1))
        return [-(-share // size) for size in sizes if size >= self.fewest]

    def whole(self, precision: str, budget: int, cap: int, offload: bool) -> Iterator[Candidate]:
        """Candidates that take the whole share at once."""
        if self.micro and self.micro != self.workload.share:
            return
        firsts = not offload
        for policy in self.policies(precision, offload):
            if firsts and policy.segments:
                firsts = False
                if found := self.first(precision, budget, cap):
                    yield found
                    if self.within:  # no table is made, and whatever recomputes all costs more
                        return
            yield self.candidate(precision, replace(policy, offload=offload), 1, cap)

    def parts(self, precision: str, budget: int, cap: int, offload: bool) -> Iterator[Candidate]:
        """Candidates in micro-batches, for each policy the largest that fit."""
        if self.micro == self.workload.share:
            return
        for policy in self.policies(precision, offload):
            if found := self.split(precision, replace(policy, offload=offload), budget, cap):
                yield found

    def run(self, budget: int, every: bool = False) -> Result:
        """Look for a plan within `budget` bytes of device memory.

        every  look at all kinds of candidates, for a table; else stop where nothing later can be better

        Raises Untraceable for a network that FakeTensors cannot run.
        """
        cap, self.within = workspace_cap(budget), 0 if every else budget
        seen: list[Candidate] = []

        def best() -> Candidate | None:
            while found := min((one for one in seen if one.peak <= budget), key=lambda one: one.order, default=None):
                if self._certain(found):
                    break
                seen[seen.index(found)] = self.confirmed(found, budget, cap)
            return found

        def enough(stage: Stage) -> bool:
            """Whether later stages cannot be better: every kind that keeps the function has been looked at."""
            found = best()
            compared = self.normalised or stage == self.parts
            return found is not None and not found.small_norm and compared and (not every or stage == self.parts)

        for precision in self.precisions:
            for stage, offload in self._stages():
                for candidate in stage(precision, budget, cap, offload):
                    seen.append(candidate)
                    if candidate.plain and candidate.peak <= budget and not every:
                        return self._result(seen, candidate, budget, cap)
                if enough(stage):
                    return self._result(seen, best(), budget, cap)
            if best():
                break
        return self._result(seen, best(), budget, cap)

    def _result(self, seen: list[Candidate], found: Candidate | None, budget: int, cap: int) -> Result:
        return Result(self.workload, budget, cap, seen, found, None if found else self.least(cap), self.normalised)

    def _stages(self) -> list[tuple[Stage, bool]]:
        """Where to look, in order, and whether what is kept goes to the host there."""
        places = (True,) if self.only_offload else (False, True) if self.offload else (False,)
        return [(stage, offload) for offload in places for stage in (self.whole, self.parts)]

    def least(self, cap: int) -> Candidate:
        """The candidate that needs the least of all, in a budget that is as large: with that one's workspace cap."""
        # gradients are kept from one micro-batch to the next, so that few images may need less all at once
        counts = [*([] if self.micro else [1]), *self.accumulations()[-1:]]
        self.within = 0
        while True:
            found = self._smallest(
                [
                    (precision, replace(policy, offload=offload), count)
                    for precision in self.precisions
                    for offload in dict.fromkeys(offload for _, offload in self._stages())
                    for policy in self.policies(precision, offload)
                    for count in counts
                ],
                cap,
            )
            larger = workspace_cap(enough(found.peak))
            if larger <= cap:
                return found
            cap = larger

    def _smallest(self, ways: list[tuple[str, Policy, int]], cap: int) -> Candidate:
        """The candidate of the smallest peak, the first of equal ones; none is replayed whose tensors are above it."""
        share, alone = self.workload.share, []
        for place, (precision, policy, count) in enumerate(ways):
            alone.append((self.tensors(precision, policy, -(-share // count), count, cap)[0].peak, place))
        best: tuple[int, int, Candidate] | None = None
        for tensors, place in sorted(alone):
            if best is not None and tensors - len(Category) > best[0]:  # a candidate's categories are whole bytes
                break
            found = self.candidate(*ways[place], cap)
            best = min(best or (found.peak, place, found), (found.peak, place, found))
        assert best is not None
        return best[2]
