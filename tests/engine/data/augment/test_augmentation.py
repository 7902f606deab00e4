"""Augmented batches: what each flag changes, and that nothing but (seed, epoch, image) decides on it."""

import os
import signal

import numpy as np
import pytest
import torch

from engine.config import AugmentConfig, ConfigError
from engine.data.augment import augmentation as module
from engine.data.augment.augmentation import Augmentation
from engine.data.augment.threads import augmenting_threads, single_threads
from engine.data.preprocessing import Preprocessing
from engine.data.sampling import Where, numbers_of

PIXELS = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.875, "bilinear", 32)
FLAGS = {
    "randaugment": {"policy": "randaugment"},
    "trivialaugment": {"policy": "trivialaugment"},
    "autoaugment": {"policy": "autoaugment"},
    "augmix": {"policy": "augmix"},
    "vertical flip": {"vertical_flip": 0.5},
    "rotation": {"rotation": 30.0},
    "jitter": {"jitter": (0.4, 0.4, 0.4, 0.1)},
    "grayscale": {"grayscale": 0.5},
    "blur": {"blur": 0.5},
    "erasing": {"erasing": 0.5},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "a batch's mixture": {"mixup": 0.8, "cutmix": 1.0, "mix_mode": "batch"},
    "light": {"preset": "light"},
    "medium": {"preset": "medium"},
    "strong": {"preset": "strong"},
    "seed": {"preset": "seed"},
}
REPEATED = {"repeats": 2, "policy": "trivialaugment", "mixup": 0.8}


@pytest.fixture(scope="module")
def pictures(photo) -> torch.Tensor:
    found = np.stack([np.asarray(photo(seed, 32, 32)) for seed in range(16)])
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def augmented(pictures, config, indices=None, epoch=0, seed=0, step=0, threads=1):
    augmentation = Augmentation(config, PIXELS, 16, seed, 10, threads)
    indices = np.arange(16) if indices is None else indices
    labels = torch.from_numpy(indices)
    return augmentation(pictures[indices], labels, Where(epoch, step, indices, len(indices)), torch.float32)


def plain(pictures):
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (PIXELS.mean, PIXELS.std))
    return (pictures - mean) / std


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_pixels_by_seed_epoch_and_image_alone(flag, pictures):
    config = AugmentConfig(**FLAGS[flag])
    images, labels = augmented(pictures, config)
    assert images.is_contiguous(memory_format=torch.channels_last) and images.isfinite().all()
    changed = (images != plain(pictures)).flatten(1).any(dim=1).float().mean()
    assert changed > 0.15, "the flag does nothing"
    again, same = augmented(pictures, config)
    assert torch.equal(images, again) and torch.equal(labels, same)
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not torch.equal(images, augmented(pictures, config, **other)[0])
    order = np.array([4, 5, 0, 1, 12, 13])  # partners stay together
    some, of_them = augmented(pictures, config, order)
    assert torch.equal(some, images[order]) and torch.equal(of_them, labels[order])


def test_without_any_the_pixels_are_normalised(pictures):
    config = AugmentConfig(erasing=0.001)  # of 16 images none
    torch.testing.assert_close(
        augmented(pictures, config)[0], plain(pictures).contiguous(memory_format=torch.channels_last)
    )
    assert not AugmentConfig().changes_pixels and not AugmentConfig(crop="fixed").changes_pixels


def test_shares_of_images(pictures):
    many = pictures[:1].expand(400, -1, -1, -1).contiguous()
    for name, low, high in (("vertical_flip", 0.2, 0.4), ("grayscale", 0.2, 0.4), ("blur", 0.2, 0.4)):
        augmentation = Augmentation(AugmentConfig(**{name: 0.3}), PIXELS, 4, 0, 10)
        images, _ = augmentation(
            many, torch.zeros(400, dtype=torch.int64), Where(0, 0, np.arange(400), 400), torch.float32
        )
        changed = (images != plain(many)).flatten(1).any(dim=1).float().mean().item()
        assert low < changed < high, name
    augmentation = Augmentation(AugmentConfig(erasing=1.0), PIXELS, 4, 0, 10)
    images, _ = augmentation(many, torch.zeros(400, dtype=torch.int64), Where(0, 0, np.arange(400), 400), torch.float32)
    erased = (images == 0).all(dim=1).float().mean(dim=(1, 2))
    assert erased.min() > 0.01 and erased.max() < 0.4 and 0.12 < erased.mean() < 0.22


def test_mixtures_end_where_they_should(pictures):
    config = AugmentConfig(mixup=0.8, mix_off_epochs=3)
    assert augmented(pictures, config, epoch=6)[1].ndim == 2
    images, labels = augmented(pictures, config, epoch=7)
    assert labels.ndim == 1
    torch.testing.assert_close(images, plain(pictures).contiguous(memory_format=torch.channels_last))


def test_a_batch_shares_one_mixture_on_every_rank(pictures):
    config = AugmentConfig(mixup=0.8, mix_mode="batch")
    _, first = augmented(pictures, config, np.arange(8), step=3)
    _, second = augmented(pictures, config, np.arange(8, 16), step=3)
    shares = torch.cat([first, second]).max(dim=1).values
    assert len(shares.unique()) == 1
    assert not torch.equal(first, augmented(pictures, config, np.arange(8), step=4)[1])


def test_each_image_has_numbers_of_its_own():
    numbers = numbers_of(np.arange(2000), 3, 0, 0)
    assert abs(numbers.mean() - 0.5) < 0.01 and len(np.unique(numbers)) == numbers.size
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.06
    np.testing.assert_array_equal(numbers_of(np.array([7, 7, -1]), 3, 0, 0)[:2], np.stack([numbers[7]] * 2))


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("flag", ["strong", "a batch's mixture", "augmix", "seed", "repeats"])
def test_loaders_give_the_same_on_one_rank_and_on_two(flag, backend, numbered, loader_of):
    """And after a resume in the middle of an epoch, and with another number of threads."""
    augment = AugmentConfig(**FLAGS.get(flag, REPEATED))
    settings = {"global_batch": 8, "backend": backend, "augment": augment, "epochs": 5}
    source = numbered(22)
    whole = list(loader_of(source, **settings).epoch(2))
    ranks = [list(loader_of(source, rank=rank, world=2, **settings).epoch(2)) for rank in range(2)]
    later = list(loader_of(source, workers=2, **settings).epoch(2, start_step=1))
    assert all(torch.equal(one.images, two.images) for one, two in zip(whole[1:], later, strict=True))
    for batch, *shares in zip(whole, *ranks, strict=True):
        parts = [
            torch.cat([getattr(share, name)[share.weights > 0] for share in shares]) for name in ("images", "labels")
        ]
        if len(batch.images) == 8:  # of the tail's 6, each rank has an odd share: the last stays whole
            assert torch.equal(parts[0], batch.images) and torch.equal(parts[1], batch.labels)
        assert len(parts[0]) == batch.global_count
    assert len(whole) == 3


@pytest.mark.parametrize("augment", [{}, {"policy": "trivialaugment"}], ids=["crops alone", "operators"])
def test_a_repeated_image_is_another_picture_each_time(numbered, loader_of, augment):
    batch = next(loader_of(numbered(12), global_batch=12, augment=AugmentConfig(repeats=3, **augment)).epoch(0))
    assert len(batch.labels.unique()) == 4
    for label in batch.labels.unique():
        one, two, three = batch.images[batch.labels == label]
        assert not torch.equal(one, two) and not torch.equal(two, three) and not torch.equal(one, three)


@pytest.mark.parametrize("flag", ["medium", "seed", "augmix"])
def test_the_backends_agree(flag, photo_files, files_source, loader_of):
    settings = {"global_batch": 6, "augment": AugmentConfig(**FLAGS[flag]), "epochs": 5, "image_size": 48}
    for ours, theirs in zip(
        loader_of(files_source(photo_files), backend="dali", **settings).epoch(1),
        loader_of(files_source(photo_files), backend="torchvision", **settings).epoch(1),
        strict=True,
    ):
        assert (ours.images - theirs.images).abs().mean() * 255 < 3  # equalise and posterise spread a grey level


def test_only_training_is_augmented(numbered, loader_of):
    settings = {"augment": AugmentConfig(preset="strong"), "epochs": 5}
    plainly = [batch.images for batch in loader_of(numbered(9), "val").epoch(0)]
    augmented = [batch.images for batch in loader_of(numbered(9), "val", **settings).epoch(0)]
    assert all(torch.equal(one, two) for one, two in zip(plainly, augmented, strict=True))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"severity": 4}, "--augment.severity needs another --augment.policy"),
        ({"magnitude": 4, "policy": "augmix"}, "--augment.magnitude needs"),
        ({"mix_off_epochs": 2}, "needs --augment.mixup or --augment.cutmix"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "hue"),
        ({"jitter": (2.0, 0.1, 0.1, 0.1)}, "from 0 to 1"),
        ({"erasing": 1.5}, "--augment.erasing must be from 0 to 1"),
        ({"rotation": -1.0}, "from 0 to 180"),
        ({"mixup": -0.2}, "from 0 (off)"),
        ({"repeats": 0}, "from 1 (once) to 64"),
        ({"magnitude": 31, "policy": "randaugment"}, "from 0 to 30"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, told):
    with pytest.raises(ConfigError, match=told.replace("(", r"\(").replace(")", r"\)")):
        AugmentConfig(**fields)


def test_a_field_wins_over_its_preset():
    used = AugmentConfig(preset="strong", magnitude=5, cutmix=0.0).resolved
    assert (used["magnitude"], used["cutmix"], used["mixup"], used["erasing"]) == (5, 0.0, 0.8, 0.25)
    for preset in ("none", "light", "medium", "strong", "seed"):
        config = AugmentConfig(preset=preset)
        assert config.whole().resolved | {"preset": "", "magnitude": 0} == config.resolved | {
            "preset": "",
            "magnitude": 0,
        }
        assert config.whole().whole() == config.whole()
    assert AugmentConfig(preset="strong").describe() == "randaugment 2 × 15, erasing 0.25, mixup 0.8, cutmix 1"
    assert AugmentConfig().describe() == ""


@pytest.mark.parametrize("flag", ["randaugment", "augmix", "blur", "strong", "seed"])
def test_images_changed_one_by_one_in_three_threads_have_the_pixels_of_all_in_one(flag, pictures, monkeypatch):
    config = AugmentConfig(**FLAGS[flag])
    together, labels = augmented(pictures, config)
    monkeypatch.setattr(module, "IN_CACHE", 32 * 32)
    apart, same = augmented(pictures, config, threads=3)
    assert torch.equal(together, apart) and torch.equal(labels, same)


def test_only_the_threads_that_change_images_compute_with_one():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        within = list(single_threads(2, "two").map(lambda _: torch.get_num_threads(), range(8)))
        assert set(within) == {1} and torch.get_num_threads() == before + 1
        torch.ones(10**6).exp_()  # whoever starts later takes what this thread does
        with single_threads(1, "one") as other, type(other)(1) as plain_threads:
            assert plain_threads.submit(torch.get_num_threads).result() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_forked_process_has_threads_of_its_own():
    list(augmenting_threads(2).map(abs, range(8)))
    if (child := os.fork()) == 0:
        signal.alarm(60)  # without them it would wait for ever
        os._exit(sum(augmenting_threads(2).map(abs, range(8))))
    assert os.waitpid(child, 0)[1] == sum(range(8)) << 8
