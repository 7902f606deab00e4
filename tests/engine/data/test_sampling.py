"""The schedule: who gets which image when."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import sampling
from engine.data.sampling import Sampler

SIZES = st.integers(1, 300)
WORLDS = st.sampled_from([1, 2, 3, 4, 8])


def build_ranks(n, per_rank, world, shuffle=True, minimum_share=1, seed=0):
    return [Sampler(n, per_rank * world, rank, world, seed, shuffle, minimum_share) for rank in range(world)]


@given(SIZES, st.integers(1, 9), WORLDS, st.booleans(), st.integers(1, 3), st.integers(0, 5))
def test_every_image_once_an_epoch_over_the_ranks(n, per_rank, world, shuffle, minimum_share, epoch):
    ranks = build_ranks(n, per_rank, world, shuffle, minimum_share)
    seen = []
    for step in range(ranks[0].steps_per_epoch):
        for sampler in ranks:
            share = sampler.share(epoch, step)
            seen += share.indices[share.weights == 1].tolist()
            assert set(share.weights.tolist()) <= {0.0, 1.0}
            assert ((share.indices >= 0) & (share.indices < n)).all()
    assert sorted(seen) == list(range(n))


@given(SIZES, st.integers(1, 9), WORLDS, st.integers(1, 3))
def test_all_ranks_take_as_many_steps_and_counts_add_up(n, per_rank, world, minimum_share):
    ranks = build_ranks(n, per_rank, world, minimum_share=minimum_share)
    steps = {sampler.steps_per_epoch for sampler in ranks}
    assert steps == {-(-n // (per_rank * world))}
    total = 0
    for step in range(steps.pop()):
        shares = [sampler.share(0, step) for sampler in ranks]
        assert len({share.global_count for share in shares}) == 1
        assert sum(share.count for share in shares) == shares[0].global_count
        assert all(share.count == share.weights.sum() for share in shares)
        assert all(
            minimum_share <= len(share.indices) <= sampler.largest_share
            for share, sampler in zip(shares, ranks, strict=True)
        )
        assert max(share.count for share in shares) - min(share.count for share in shares) <= 1
        total += shares[0].global_count
    assert total == n


@given(SIZES, st.integers(0, 4), WORLDS)
def test_global_batch_does_not_depend_on_the_number_of_ranks(n, epoch, world):
    alone = Sampler(n, 24, 0, 1, 7, True)
    ranks = [Sampler(n, 24, rank, world, 7, True) for rank in range(world)]
    for step in range(alone.steps_per_epoch):
        together = [share.indices[share.weights == 1] for share in (sampler.share(epoch, step) for sampler in ranks)]
        np.testing.assert_array_equal(np.concatenate(together), alone.share(epoch, step).indices)


def test_short_shares_are_filled_at_weight_zero():
    last = [Sampler(9, 8, rank, 4, 0, False, minimum_share=2).share(0, 1) for rank in range(4)]
    assert [share.indices.tolist() for share in last] == [[8, 8]] * 4
    assert [share.weights.tolist() for share in last] == [[1, 0], [0, 0], [0, 0], [0, 0]]
    assert [share.count for share in last] == [1, 0, 0, 0]


def test_full_batches_are_never_filled():
    share = Sampler(8, 8, 1, 4, 0, False, minimum_share=2).share(0, 0)
    assert share.indices.tolist() == [2, 3] and share.weights.tolist() == [1, 1]


def test_shares_of_a_batch_that_does_not_divide_differ_by_one():
    samplers = [Sampler(70, 32, rank, 3, 0, True) for rank in range(3)]
    assert [sampler.largest_share for sampler in samplers] == [11] * 3
    for step, sizes in ((0, [11, 11, 10]), (1, [11, 11, 10]), (2, [2, 2, 2])):
        shares = [sampler.share(0, step) for sampler in samplers]
        assert [len(share.indices) for share in shares] == [share.count for share in shares] == sizes
        together = np.concatenate([share.indices for share in shares])
        np.testing.assert_array_equal(together, Sampler(70, 32, 0, 1, 0, True).share(0, step).indices)


def test_order_changes_by_epoch_and_seed_and_repeats_exactly():
    def order(seed, epoch):
        return Sampler(100, 100, 0, 1, seed, True).share(epoch, 0).indices.tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_evaluation_keeps_the_order():
    sampler = Sampler(10, 4, 0, 1, 3, shuffle=False)
    assert [sampler.share(5, step).indices.tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_asking_back_and_forth_gives_the_same_answer():
    sampler = Sampler(50, 10, 0, 1, 0, True)
    first = sampler.share(0, 1).indices.copy()
    sampler.share(4, 2)
    np.testing.assert_array_equal(sampler.share(0, 1).indices, first)


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_epoch_is_refused(step):
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        Sampler(50, 10, 0, 1, 0, True).share(0, step)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 1, 0, 4, 0, True), "1 images leaves some of 4 ranks without any"),
        ((0, 4, 0, 1, 0, True), "no images"),
        ((10, 4, 2, 2, 0, True), "rank 2"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(*arguments)


def test_random_numbers_of_an_image_depend_on_seed_epoch_and_index_only():
    short, long = sampling.draws(10, 3, 2), sampling.draws(1000, 3, 2)
    np.testing.assert_array_equal(short, long[:10])
    assert short.dtype == np.float32 and long.min() >= 0 and long.max() < 1
    assert not np.array_equal(short, sampling.draws(10, 3, 3))
    assert not np.array_equal(short, sampling.draws(10, 4, 2))


def test_purposes_do_not_share_random_numbers():
    values = {sampling.generator(5, 1, purpose).random() for purpose in range(3)}
    values |= {sampling.generator(5, 0, purpose).random() for purpose in range(3)}
    assert len(values) == 6


def test_random_numbers_are_those_of_every_machine():
    # a change here means that runs of an older version no longer resume exactly
    np.testing.assert_allclose(
        sampling.draws(1, 0, 0)[0], [0.975125, 0.813354, 0.297379, 0.751331, 0.068283], atol=1e-6
    )
    assert Sampler(8, 8, 0, 1, 0, True).share(0, 0).indices.tolist() == [5, 0, 6, 1, 7, 2, 4, 3]


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_no_limit_is_everything(limit):
    np.testing.assert_array_equal(sampling.subset(100, limit, 0), np.arange(100))


def test_a_limit_is_a_seeded_choice_that_grows_with_the_limit():
    chosen = sampling.subset(100, 10, 1)
    assert len(set(chosen.tolist())) == 10 and (np.diff(chosen) > 0).all()
    assert set(chosen) < set(sampling.subset(100, 20, 1))
    assert set(chosen) != set(sampling.subset(100, 10, 2))


@given(st.integers(1, 200), st.integers(1, 9), WORLDS, st.integers(2, 5), st.integers(0, 3))
def test_repeated_images_stand_in_one_batch_whatever_the_ranks(n, per_rank, world, times, epoch):
    size = per_rank * world
    alone = Sampler(n, size, 0, 1, 3, True, repeated=times)
    ranks = [Sampler(n, size, rank, world, 3, True, repeated=times) for rank in range(world)]
    seen: list[tuple[int, int]] = []
    for step in range(alone.steps_per_epoch):
        batch = alone.share(epoch, step)
        shares = [sampler.share(epoch, step) for sampler in ranks]
        for name in ("indices", "repeats"):
            parts = [getattr(share, name)[share.weights == 1] for share in shares]
            np.testing.assert_array_equal(np.concatenate(parts), getattr(batch, name))
        images, counts = np.unique(batch.indices, return_counts=True)
        assert counts.max() <= times and len(images) == -(-len(batch.indices) // times)
        if len(images) > 1:
            assert (batch.indices[::2][: len(batch.indices) // 2] != batch.indices[1::2]).all(), "mixed with itself"
        seen += zip(batch.indices.tolist(), batch.repeats.tolist(), strict=True)
    assert len(seen) == len(set(seen)) == n, "no turn of an image comes twice, also over batches"


def test_every_image_is_shown_over_the_epochs():
    sampler = Sampler(60, 12, 0, 1, 0, True, repeated=3)
    shown = [
        np.unique(np.concatenate([sampler.share(epoch, step).indices for step in range(5)])) for epoch in range(12)
    ]
    assert {len(images) for images in shown} == {20} and len(np.unique(np.concatenate(shown))) == 60
