"""The caching allocator's rules on hand-made sequences; against the real one: test_real_allocator.py."""

import pytest

from engine.plan.memory.allocator import MIB, least_memory, replay


def sequence(*steps):
    """(sizes, events) of steps: bytes is a request, and minus its number (from 1) a free."""
    sizes, events = [], []
    for step in steps:
        if step > 0:
            sizes.append(step)
            events.append(len(sizes))
        else:
            events.append(step)
    return sizes, events


def reserved(*steps, expandable):
    outcome = replay(*sequence(*steps), 1 << 40, expandable)
    assert outcome.fits and not outcome.retries
    return outcome.reserved


@pytest.mark.parametrize(
    ("steps", "segments", "pages"),
    [
        ((1,), 2 * MIB, 2 * MIB),
        ((MIB, MIB), 2 * MIB, 2 * MIB),
        ((MIB, MIB, 1), 4 * MIB, 4 * MIB),
        ((MIB + 1,), 20 * MIB, 20 * MIB),  # the other pool
        ((9 * MIB, 9 * MIB), 20 * MIB, 20 * MIB),
        ((11 * MIB - 1,), 12 * MIB, 20 * MIB),  # a segment of its own, in units of 2 MiB
        ((30 * MIB, 30 * MIB), 60 * MIB, 60 * MIB),
        ((30 * MIB, 40 * MIB), 70 * MIB, 80 * MIB),  # pages of 20 MiB
        ((50 * MIB, -1, 30 * MIB, 20 * MIB), 50 * MIB, 60 * MIB),  # what is left of a block is one of its own
        ((30 * MIB, 30 * MIB, -1, -2, 60 * MIB), 120 * MIB, 60 * MIB),  # neighbours, and segments that are none
    ],
)
def test_how_much_is_held(steps, segments, pages):
    assert reserved(*steps, expandable=False) == segments
    assert reserved(*steps, expandable=True) == pages


def test_a_large_remainder_is_kept_whole_without_expandable_segments():
    """The rest of a block up to 1 MiB goes with it; with expandable segments every 512 bytes are used."""
    steps = (20 * MIB, -1, 19 * MIB, MIB + 512)
    assert reserved(*steps, expandable=False) == 40 * MIB
    assert reserved(*steps, expandable=True) == 40 * MIB  # the page that is needed for 512 bytes more
    assert reserved(20 * MIB, -1, 18 * MIB, MIB + 512, expandable=True) == 20 * MIB


def test_the_best_fit_is_taken():
    """The 40 MiB hole, not the 60 MiB one, so that 60 MiB fit afterwards."""
    steps = (60 * MIB, 20 * MIB, 40 * MIB, 20 * MIB, -1, -3, 40 * MIB, 60 * MIB)
    for expandable in (False, True):
        assert reserved(*steps, expandable=expandable) == 140 * MIB


def test_what_is_cached_is_given_back_where_memory_is_short():
    """Two holes of 40 MiB hold no 80 MiB: without expandable segments they are segments that can go."""
    sizes, events = sequence(40 * MIB, 40 * MIB, 40 * MIB, -1, -3, 80 * MIB)
    for expandable in (False, True):
        outcome = replay(sizes, events, 120 * MIB, expandable)
        assert outcome.fits and outcome.retries == 1 and outcome.reserved == 120 * MIB
        assert not replay(sizes, events, 100 * MIB, expandable).fits
        assert replay(sizes, events, 200 * MIB, expandable).retries == 0


def test_a_hole_that_is_no_whole_page_stays_lost():
    """30 MiB between two blocks hold one page of 20 MiB that can be unmapped."""
    sizes, events = sequence(30 * MIB, 30 * MIB, 40 * MIB, -2, 50 * MIB)
    assert not replay(sizes, events, 130 * MIB).fits  # 100 held, 10 or 20 of them given back, 60 more asked for
    assert replay(sizes, events, 140 * MIB).fits
    assert least_memory(sizes, events) <= 140 * MIB


def test_where_it_fails_is_said():
    sizes, events = sequence(30 * MIB, 30 * MIB, 30 * MIB)
    outcome = replay(sizes, events, 60 * MIB)
    assert not outcome.fits and outcome.at == 2


@pytest.mark.parametrize("expandable", [False, True])
def test_the_least_limit_does_and_little_less_does_not(expandable):
    import random

    draw = random.Random(0)
    sizes, events, alive = [], [], []
    for _ in range(400):
        if alive and draw.random() < 0.5:
            events.append(-alive.pop(draw.randrange(len(alive))))
        else:
            sizes.append(draw.choice((512, 3000, 300_000, 2 * MIB, 30 * MIB, 111 * MIB)) + draw.randrange(100_000))
            events.append(len(sizes))
            alive.append(len(sizes))
    least = least_memory(sizes, events, expandable)
    assert replay(sizes, events, least, expandable).fits
    assert least <= 1.02 * next(
        limit for limit in range(least // 2, 2 * least, 4 * MIB) if replay(sizes, events, limit, expandable).fits
    )


def plainly_held(sizes, events):
    """Bytes of the segments that best fit makes of small requests: address ranges, looked through one by one."""
    segments, places = [], {}  # [[start, size, free], ...] a segment
    for event in events:
        if event < 0:
            segment, start = places.pop(-event)
            [range_] = [one for one in segment if one[0] == start]
            range_[2] = True
            for left, right in [(i, i + 1) for i in reversed(range(len(segment) - 1))]:
                if segment[left][2] and segment[right][2]:
                    segment[left][1] += segment.pop(right)[1]
            continue
        size = -(-sizes[event - 1] // 512) * 512
        free = [(one[1], n, one[0], one) for n, segment in enumerate(segments) for one in segment if one[2]]
        fitting = [found for found in free if found[0] >= size]
        if not fitting:
            segments.append([[0, 2 * MIB, True]])
            fitting = [(2 * MIB, len(segments) - 1, 0, segments[-1][0])]
        _, n, start, range_ = min(fitting)
        if range_[1] > size:
            segments[n].insert(segments[n].index(range_) + 1, [start + size, range_[1] - size, True])
        range_[1], range_[2] = size, False
        places[event] = segments[n], start
    return len(segments) * 2 * MIB


def test_the_replay_holds_what_a_plain_best_fit_does():
    """Frees right behind their request included, which the replay passes over where nothing has to grow."""
    import random

    draw = random.Random(1)
    for _ in range(6):
        sizes, events, alive = [], [], []
        for _ in range(300):
            if alive and draw.random() < 0.48:
                events.append(-alive.pop(draw.randrange(len(alive))))
                continue
            sizes.append(draw.choice((400, 5_000, 90_000, 600_000)) + draw.randrange(4_000))
            events.append(len(sizes))
            if draw.random() < 0.3:
                events.append(-len(sizes))
            else:
                alive.append(len(sizes))
        assert replay(sizes, events, 1 << 40, expandable=False).reserved == plainly_held(sizes, events)
