"""Sizes as a function of the batch, and what a timeline says of them."""

import numpy as np
import pytest

from engine.plan.memory.trace import PRIME, ROUND, Affine, Category, Operators, Trace


def made(sizes, events, category=None, batch=PRIME, phases=((0, "forward"), (2, "backward"))) -> Trace:
    none = Affine.split([], 0)
    n = len(sizes)
    return Trace(
        sizes=Affine.split(sizes, batch),
        category=np.array(category or [Category.TRANSIENT] * n, dtype=np.int8),
        whole_share=np.array([c == Category.INPUT for c in category or [0] * n]),
        capped=np.array([c == Category.WORKSPACE for c in category or [0] * n]),
        fp16_only=np.zeros(n, dtype=bool),
        storage=np.abs(np.array(events)) - 1,
        sign=np.sign(np.array(events)),
        start=0,
        phases=phases,
        operators=Operators([], none, none, np.zeros(0, dtype=bool)),
    )


def test_a_prime_batch_tells_what_grows():
    sizes = Affine.split([3 * PRIME, 100, 0], PRIME)
    assert sizes.at(4).tolist() == [12, 100, 0]
    assert Affine.split([3 * PRIME], 0).at(4).tolist() == [3 * PRIME]


def test_peak_follows_the_events():
    """Two of 1 KiB an image live together, then one is freed before a third of 512 bytes."""
    trace = made([1024 * PRIME, 1024 * PRIME, 512], [1, 2, -1, 3])
    assert trace.peak(1) == 2048 and trace.peak(8) == 8 * 2048
    timeline = trace.timeline(8)
    assert timeline.total.tolist() == [8192, 16384, 8192, 8704]
    assert timeline.peak_at == 1 and timeline.peak_phase == "forward"


def test_rounding_is_a_category_of_its_own():
    timeline = made([100], [1]).timeline(1)
    assert timeline.by_category() == {Category.TRANSIENT: 100, Category.ROUNDING: ROUND - 100}
    assert timeline.peak == ROUND


def test_a_workspace_is_capped_and_images_grow_with_the_share():
    trace = made([2048 * PRIME, 1024 * PRIME], [1, 2], [Category.WORKSPACE, Category.INPUT])
    assert trace.peak(2, share=8, cap=512) == 512 + 8 * 1024
    assert trace.timeline(2, share=8, cap=512).peak == trace.peak(2, share=8, cap=512)
    assert trace.peak(2, share=8) == 2 * 2048 + 8 * 1024


@pytest.mark.parametrize("batch", [1, 3, 128])
def test_saved_is_what_is_alive_at_the_end_of_the_forward_pass(batch):
    kinds = [Category.SAVED, Category.SAVED, Category.TRANSIENT]
    trace = made(
        [512 * PRIME, 512 * PRIME, 512 * PRIME], [1, 2, -2, 3], kinds, phases=((0, "forward"), (4, "backward"))
    )
    assert trace.saved(batch) == 512 * batch
