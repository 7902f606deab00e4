"""Classes of unlike size: the balanced order, the weights, the shift, and what is said of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import ConfigError, DataConfig, OptimConfig, RunConfig
from engine.data.balance import class_counts, class_weights, describe, logit_shift
from engine.data.sampling import Sampler
from engine.data.sources.source import Source, Split

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(np.array)


def epoch_of(labels, epoch, world=1, per_rank=5):
    """Positions and repeats of an epoch, in the order of its global batches."""
    ranks = [Sampler(len(labels), per_rank * world, r, world, 3, True, balanced=labels) for r in range(world)]
    found = []
    for step in range(ranks[0].steps_per_epoch):
        for share in (one.share(epoch, step) for one in ranks):
            found += list(zip(share.indices[: share.count], share.repeats[: share.count], strict=True))
    return np.array(found)


@settings(max_examples=25)
@given(LABELS, st.integers(0, 7))
def test_an_epoch_has_as_many_images_and_classes_differ_by_one(labels, epoch):
    drawn = epoch_of(labels, epoch)
    assert len(drawn) == len(labels)
    counts = np.bincount(labels[drawn[:, 0]], minlength=5)[np.unique(labels)]
    assert counts.max() - counts.min() <= 1
    assert len({(image, repeat) for image, repeat in drawn.tolist()}) == len(
        drawn
    )  # each repeat has a number of its own
    assert all(drawn[drawn[:, 0] == image, 1].max() + 1 == (drawn[:, 0] == image).sum() for image in set(drawn[:, 0]))


@settings(max_examples=25)
@given(LABELS)
def test_a_class_goes_through_all_its_images_before_one_comes_again(labels):
    seen = np.concatenate([epoch_of(labels, epoch)[:, 0] for epoch in range(6)])
    for label in np.unique(labels):
        times = np.bincount(seen, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1


@settings(max_examples=25)
@given(LABELS, st.integers(0, 4), st.sampled_from([2, 3, 4]))
def test_the_batches_are_the_same_for_any_number_of_ranks(labels, epoch, world):
    np.testing.assert_array_equal(epoch_of(labels, epoch, world, per_rank=12 // world), epoch_of(labels, epoch, 1, 12))


def test_an_image_that_comes_again_is_cut_anew(loader_of, photo):
    arrays = np.stack([np.asarray(photo(seed, 24, 24)) for seed in range(9)])
    split = Split(labels=np.array([0] * 8 + [1]), arrays=arrays)
    source = Source("tail", ["many", "one"], split, split, (0.5,) * 3, (0.2,) * 3, True, (0.3, 1.0), 1.0)
    loader = loader_of(source, balance="sampler", global_batch=9)
    (batch,) = loader.epoch(0)
    rare = batch.images[batch.labels == 1]
    assert len(rare) in (4, 5)
    assert all((rare[0] != other).any() for other in rare[1:])


def test_repeats_survive_a_resume_and_another_backend(loader_of, photo):
    arrays = np.stack([np.asarray(photo(seed, 24, 24)) for seed in range(9)])
    split = Split(labels=np.array([0] * 8 + [1]), arrays=arrays)
    source = Source("tail", ["many", "one"], split, split, (0.5,) * 3, (0.2,) * 3, True, (0.3, 1.0), 1.0)
    whole = list(loader_of(source, balance="sampler", global_batch=3).epoch(1))
    late = list(loader_of(source, balance="sampler", global_batch=3).epoch(1, 1))
    twin = list(loader_of(source, balance="sampler", global_batch=3, backend="torchvision").epoch(1))
    for before, after in zip(whole[1:], late, strict=True):
        assert (before.images == after.images).all() and (before.labels == after.labels).all()
    for ours, theirs in zip(whole, twin, strict=True):
        assert (ours.labels == theirs.labels).all()
        assert (ours.images - theirs.images).abs().mean() < 0.1


def test_weights_are_those_of_the_formulas():
    counts = np.array([100, 10, 1])
    inverse = class_weights(counts, "weights", 0.999)
    np.testing.assert_allclose(inverse / inverse[0], [1, 10, 100])
    effective = class_weights(counts, "effective", 0.9)
    np.testing.assert_allclose(effective / effective[2], [(1 - 0.9) / (1 - 0.9**n) for n in counts])
    for weights in (inverse, effective):
        assert (weights * counts).sum() == pytest.approx(counts.sum())
    assert class_weights(counts, "sampler", 0.9) is None and class_weights(counts, "none", 0.9) is None
    np.testing.assert_allclose(logit_shift(counts, 2.0), 2 * np.log(counts / 111))
    assert logit_shift(counts, 0.0) is None


def test_a_class_without_images_is_finite():
    counts = class_counts(np.array([0, 0, 2]), 3, np.array([0, 2]))
    assert counts.tolist() == [1, 0, 1]
    assert class_weights(counts, "weights", 0.9).tolist() == [1, 0, 1]
    assert np.isfinite(logit_shift(counts, 1.0)).all()


def test_what_is_said():
    classes, tail = ["a", "b", "c"], np.array([100, 30, 1])
    assert describe(classes, np.array([10, 10, 9]), DataConfig(), OptimConfig()) == ""
    said = describe(classes, tail, DataConfig(), OptimConfig())
    assert said.startswith("classes 100:1, a 100 to c 1 training images: nothing is done about it")
    assert "drawn equally often" in describe(classes, tail, DataConfig(balance="sampler"), OptimConfig())
    assert "effective numbers, β 0.9" in describe(
        classes, tail, DataConfig(balance="effective", balance_beta=0.9), OptimConfig()
    )
    assert "logits adjusted by 1" in describe(classes, tail, DataConfig(), OptimConfig(logit_adjust=1))
    assert "none of b" in describe(classes, np.array([5, 0, 5]), DataConfig(balance="weights"), OptimConfig())


def test_refused():
    for given_ in ({"balance_beta": 1.0}, {"balance_beta": 0.0}):
        with pytest.raises(ConfigError, match="balance-beta"):
            DataConfig(**given_)
    with pytest.raises(ConfigError, match="logit-adjust"):
        OptimConfig(logit_adjust=-1)
    with pytest.raises(ConfigError, match="twice"):
        RunConfig(data=DataConfig(balance="weights"), optim=OptimConfig(logit_adjust=1))
