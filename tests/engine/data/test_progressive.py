"""Images that grow over the run: which size when, and one loader at a time."""

import pytest
import torch

from engine.config import ConfigError, DataConfig
from engine.data.backend import make_loader
from engine.data.progressive import ProgressiveLoader, size_at
from engine.data.sources.open import open_source


@pytest.mark.parametrize(
    ("epochs", "first", "last", "stages", "sizes"),
    [
        # EfficientNetV2's table 6: 128 to 300 in four stages.
        (8, 128, 300, 4, [128, 128, 184, 184, 240, 240, 300, 300]),
        (5, 64, 96, 2, [64, 64, 64, 96, 96]),
        (1, 64, 96, 4, [96]),
        (2, 64, 96, 4, [64, 96]),
        (3, 64, 64, 3, [64, 64, 64]),
    ],
)
def test_sizes(epochs, first, last, stages, sizes):
    assert [size_at(epoch, epochs, first, last, stages) for epoch in range(epochs)] == sizes


@pytest.fixture
def growing(request):
    config = DataConfig(image_size=24, progressive_from=8, progressive_stages=2, limit=40, backend="torchvision")
    source = open_source("digits")
    made = []

    def make(data):
        made.append(make_loader(source, "train", config=data, global_batch=16, device="cpu", seed=3))
        return made[-1]

    loader = ProgressiveLoader(make, config, epochs=4)
    loader.made = made
    yield loader
    loader.close()


def test_batches_have_the_size_of_their_epoch(growing):
    shapes = {epoch: {tuple(batch.images.shape[2:]) for batch in growing.epoch(epoch)} for epoch in range(4)}
    assert shapes == {0: {(8, 8)}, 1: {(8, 8)}, 2: {(24, 24)}, 3: {(24, 24)}}
    assert len(growing.made) == 2
    assert (growing.steps_per_epoch, len(growing)) == (3, 40)


def test_a_resumed_epoch_shows_the_same_images(growing):
    whole = list(growing.epoch(2))
    again = list(growing.epoch(2, start_step=1))
    assert len(again) == len(whole) - 1
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, whole[1:], strict=True))


def test_bad_images_are_told_once(growing):
    from engine.data.bad_images import BadImage

    told = []
    growing.on_bad = told.append
    growing._loader.config = growing.config  # skip mode
    growing._loader._report({3: BadImage("a.jpg", "cut off")})
    list(growing.epoch(2))
    growing._loader._report({3: BadImage("a.jpg", "cut off"), 4: BadImage("b.jpg", "empty")})
    assert [image.path for image in told] == ["a.jpg", "b.jpg"]
    assert [image.path for image in growing.bad_images] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("first", "stages"), [(4, 4), (240, 4), (128, 1)])
def test_growth_that_cannot_be_meant(first, stages):
    with pytest.raises(ConfigError, match="progressive"):
        DataConfig(image_size=224, progressive_from=first, progressive_stages=stages)
