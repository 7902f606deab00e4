"""What torch's CUDA caching allocator makes of a sequence of requests and frees: a replay of its rules, without memory.

The rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch 2.11 to 2.15) with its
default settings, on one stream: requests are rounded to 512 bytes; those up to 1 MiB come from a pool of 2 MiB
segments, larger ones from one whose segments have 20 MiB, or the request's own size from 10 MiB on; the smallest free
block that is large enough is taken and split; neighbours merge when they are free. With expandable segments a pool is
one range of addresses whose pages are mapped as it grows. Where the device has no more, what is free and whole is given
back to it, and the request is tried once more.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

MIB = 1 << 20
ROUND = 512
"""kMinBlockSize."""
SMALL = MIB
"""kSmallSize: the largest request of the small pool."""
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
"""kSmallBuffer and kLargeBuffer: segments, and the pages of expandable ones."""
OWN_SEGMENT, OWN_ROUND = 10 * MIB, 2 * MIB
"""kMinLargeAlloc and kRoundLarge: from which size on a request has a segment of its own, rounded to what."""


@dataclass(frozen=True)
class Outcome:
    """What came of a sequence."""

    fits: bool
    reserved: int
    """The most that was held of the device at once."""
    retries: int
    """How often what was cached had to be given back before a request could be met."""
    at: int
    """The event that could not be met, or how many there were."""


class Block:
    """A range of addresses within a segment."""

    __slots__ = ("address", "free", "mapped", "next", "previous", "size")

    def __init__(self, address: int, size: int, previous: Block | None, following: Block | None, mapped: bool) -> None:
        self.address, self.size, self.previous, self.next = address, size, previous, following
        self.free, self.mapped = True, mapped


class Memory:
    """Bytes of a device that one process may hold."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.held = self.most = 0

    def take(self, size: int) -> bool:
        """Hold `size` bytes more, if they are there."""
        if self.held + size > self.limit:
            return False
        self.held += size
        self.most = max(self.most, self.held)
        return True

    def give(self, size: int) -> None:
        """Hold them no longer."""
        self.held -= size


class Pool:
    """Free blocks of one of the two pools, in segments of their own.

    small  the pool of requests up to 1 MiB
    """

    def __init__(self, memory: Memory, small: bool) -> None:
        self.memory, self.small = memory, small
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT
        self.spare = ROUND if small else SMALL + 1
        """From how many bytes on what is left of a block is one of its own."""
        self.cached: list[tuple[int, int, Block]] = []
        """Free blocks as (size, address, block), the smallest first."""
        self.addresses = 0
        self.before_growth: Callable[[], None] | None = None

    def find(self, size: int) -> Block | None:
        """A block of at least `size` bytes, already rounded, no longer among the free ones but not yet cut."""
        where = bisect_left(self.cached, (size,))
        if where < len(self.cached):
            return self.cached.pop(self._better(where))[2]
        return self.grown(size)

    def grown(self, size: int) -> Block | None:
        """The same where no free block is large enough; None where there is no memory for one."""
        if self.before_growth is not None:
            self.before_growth()
        return self._grow(size)

    def release(self) -> None:
        """Give back to the device what is free and whole."""
        for _, _, block in list(self.cached):
            if block.previous is None and block.next is None:
                self._uncache(block)
                self.memory.give(block.size)

    def _better(self, where: int) -> int:
        """Where the best fit really is; the place found is."""
        return where

    def _grow(self, size: int) -> Block | None:
        """A new segment for such a request."""
        segment = self.page if size < OWN_SEGMENT else -(-size // OWN_ROUND) * OWN_ROUND
        if not self.memory.take(segment):
            return None
        return Block(self._place(segment), segment, None, None, True)

    def _place(self, segment: int) -> int:
        """Addresses for a segment; there is always another one's room between two."""
        start = self.addresses
        self.addresses += 2 * -(-segment // self.page) * self.page
        return start

    def _uncache(self, block: Block) -> None:
        where = bisect_left(self.cached, (block.size, block.address))
        assert self.cached[where][2] is block
        del self.cached[where]

    def _merge(self, block: Block) -> None:
        """Take free neighbours that are mapped, or not, as `block` is into it."""
        before, after = block.previous, block.next
        if before is not None and before.free and before.mapped == block.mapped:
            self._forget(before)
            block.address, block.size, block.previous = before.address, block.size + before.size, before.previous
            if block.previous is not None:
                block.previous.next = block
        if after is not None and after.free and after.mapped == block.mapped:
            self._forget(after)
            block.size, block.next = block.size + after.size, after.next
            if block.next is not None:
                block.next.previous = block

    def _forget(self, block: Block) -> None:
        self._uncache(block)


class ExpandablePool(Pool):
    """A pool in one range of addresses: pages are mapped where they are needed and unmapped where memory is short.

    addresses  bytes of the range: one and an eighth of the device's memory
    """

    def __init__(self, memory: Memory, small: bool, addresses: int) -> None:
        super().__init__(memory, small)
        self.spare = ROUND
        self.range = -(-addresses // self.page) * self.page
        self.unmapped: list[tuple[int, Block]] = []

    def release(self) -> None:
        """Unmap the whole pages of what is free."""
        for _, _, block in self.cached[bisect_left(self.cached, (self.page,)) :]:  # no smaller one has a whole page
            first = -(-block.address // self.page) * self.page
            last = (block.address + block.size) // self.page * self.page
            if last <= first:
                continue
            self._uncache(block)
            if first > block.address:
                before = Block(block.address, first - block.address, block.previous, block, True)
                if before.previous is not None:
                    before.previous.next = before
                block.previous = before
                insort(self.cached, (before.size, before.address, before))
            if last < block.address + block.size:
                after = Block(last, block.address + block.size - last, block, block.next, True)
                if after.next is not None:
                    after.next.previous = after
                block.next = after
                insort(self.cached, (after.size, after.address, after))
            self.memory.give(last - first)
            block.address, block.size, block.mapped = first, last - first, False
            self._merge(block)
            if block.previous is not None or block.next is not None:
                insort(self.unmapped, (block.address, block))

    def _better(self, where: int) -> int:
        """A block that can grow counts as large as it can become."""
        block = self.cached[where][2]
        size = self._expanded(block)
        while where + 1 < len(self.cached):
            following = self._expanded(self.cached[where + 1][2])
            if following >= size:
                break
            where, size = where + 1, following
        return where

    @staticmethod
    def _expanded(block: Block) -> int:
        after = block.next
        return block.size + (after.size if after is not None and not after.mapped else 0)

    def _grow(self, size: int) -> Block | None:
        block = self._room(size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            after = block.next
            assert after is not None
            if not self._map(after, min(size - block.size, after.size)):
                return None
            block = after
        self._uncache(block)
        return block

    def _room(self, size: int) -> Block:
        """The lowest addresses, free or unmapped, where `size` bytes have room."""
        for _, block in self.unmapped:
            before = block.previous
            start = before if before is not None and before.free else block
            room, place = 0, start
            while place is not None and place.free and room < size:
                room, place = room + place.size, place.next
            if room >= size:
                return start
        segment = Block(self._place(self.range), self.range, None, None, False)
        insort(self.unmapped, (segment.address, segment))
        return segment

    def _map(self, block: Block, size: int) -> bool:
        """Map whole pages from the start of an unmapped block on; it is then a free one, merged with its neighbours."""
        size = -(-size // self.page) * self.page
        if not self.memory.take(size):
            return False
        self._unlist(block)
        block.mapped = True
        if size < block.size:
            rest = Block(block.address + size, block.size - size, block, block.next, False)
            if rest.next is not None:
                rest.next.previous = rest
            block.next, block.size = rest, size
            insort(self.unmapped, (rest.address, rest))
        self._merge(block)
        insort(self.cached, (block.size, block.address, block))
        return True

    def _unlist(self, block: Block) -> None:
        where = bisect_left(self.unmapped, (block.address,))
        assert self.unmapped[where][1] is block
        del self.unmapped[where]

    def _forget(self, block: Block) -> None:
        if block.mapped:
            self._uncache(block)
        else:
            self._unlist(block)


class Sequence:
    """Requests and frees in order, as a replay goes through them.

    sizes    bytes of each request, by row; those of 0 bytes are none
    events   row + 1 where it is made, minus that where it is freed
    """

    def __init__(self, sizes: Iterable[int], events: list[int]) -> None:
        whole = np.asarray(sizes, dtype=np.int64)
        whole = np.where(whole > 0, np.maximum(ROUND, -(-whole // ROUND) * ROUND), 0)
        self.whole = [0, *whole.tolist()]
        """Bytes of the block that a request gets, before a larger one is split; from row 1 on."""
        self.events = events
        self.following = [*events[1:], 0]

    def replay(self, limit: float, expandable: bool = True, card: float = 0, sparing: bool = False) -> Outcome:
        """Whether the requests can be met in `limit` bytes of a device.

        card     bytes of the whole device, which decides on the range of addresses; 0 is the limit
        sparing  give back what is cached before any growth, as if the device were always full
        """
        memory = Memory(limit)
        if expandable:
            addresses = int((card or limit) * 9 // 8)
            small: Pool = ExpandablePool(memory, True, addresses)
            large: Pool = ExpandablePool(memory, False, addresses)
        else:
            small, large = Pool(memory, True), Pool(memory, False)

        def release() -> None:
            large.release()
            small.release()

        if sparing:
            small.before_growth = large.before_growth = release
        whole, retries = self.whole, 0
        blocks: list[Block | None] = [None] * len(whole)
        for place, (event, following) in enumerate(zip(self.events, self.following, strict=True)):
            # both ways are written out: a plan takes millions of them
            if event < 0:
                block = blocks[-event]
                if block is None:
                    continue
                blocks[-event] = None
                cached = small.cached if whole[-event] <= SMALL else large.cached
                block.free = True
                before, after = block.previous, block.next
                if before is not None and before.free and before.mapped:
                    del cached[bisect_left(cached, (before.size, before.address))]
                    block.address, block.previous = before.address, before.previous
                    block.size += before.size
                    if before.previous is not None:
                        before.previous.next = block
                if after is not None and after.free and after.mapped:
                    del cached[bisect_left(cached, (after.size, after.address))]
                    block.size += after.size
                    block.next = after.next
                    if after.next is not None:
                        after.next.previous = block
                insort(cached, (block.size, block.address, block))
                continue
            size = whole[event]
            if not size:
                continue
            pool = small if size <= SMALL else large
            cached = pool.cached
            if following == -event and cached and cached[-1][0] >= size:
                continue  # cut off and merged again: as if it had not been
            where = bisect_left(cached, (size,))
            if where == len(cached):
                block = pool.grown(size)
            else:
                block = cached[where][2]
                after = block.next
                if after is not None and not after.mapped:  # else nothing behind it is better
                    where = pool._better(where)
                    block = cached[where][2]
                del cached[where]
            if block is None:
                retries += 1
                release()
                block = pool.find(size)
                if block is None:
                    return Outcome(False, memory.most, retries, place)
            block.free = False
            spare = block.size - size
            if spare >= pool.spare:
                after = block.next
                rest = Block(block.address + size, spare, block, after, True)
                if after is not None:
                    after.previous = rest
                block.next, block.size = rest, size
                insort(cached, (spare, rest.address, rest))
            blocks[event] = block
        return Outcome(True, memory.most, retries, len(self.events))


def replay(
    sizes: Iterable[int],
    events: list[int],
    limit: float,
    expandable: bool = True,
    card: float = 0,
    sparing: bool = False,
) -> Outcome:
    """One replay of a sequence; all of Sequence's arguments."""
    return Sequence(sizes, events).replay(limit, expandable, card, sparing)


ENOUGH = 1 << 50
"""Bytes of a device on which nothing ever has to be given back."""
STEP = 0.005
"""By which share a limit that does not do is raised."""


def least_memory(sizes: Iterable[int], events: list[int], expandable: bool = True) -> int:
    """About the smallest limit in which requests can be met: one that does, by a replay of its own.

    What a sparing allocator holds at most is within 0.1 % of it where it does; else it is raised until it does.
    """
    asked = Sequence(sizes, events)
    limit = asked.replay(ENOUGH, expandable, sparing=True).reserved
    while not asked.replay(limit, expandable).fits:
        limit = int(limit * (1 + STEP))
    return limit
