"""Small sets that lie on the GPU whole: Pillow's pixels in the same batches, and where they are taken."""

import numpy as np
import pytest
import torch

from engine.config import AugmentConfig, DataConfig
from engine.data.decoded import on_device
from engine.data.decoded.on_device import DeviceLoader, fits_on_device, window_weights
from engine.data.sources.source import Source, Split
from engine.plan.memory.loader import feed_of


def source_of(*shape: int, images: int = 24) -> Source:
    """Smooth images as train and val, mirrored in training."""
    generator = np.random.default_rng(sum(shape))
    rough = torch.from_numpy(generator.integers(0, 256, (images, 3 if len(shape) == 3 else 1, 5, 6)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(rough, shape[:2], mode="bicubic").clamp(0, 255).to(torch.uint8)
    arrays = smooth.permute(0, 2, 3, 1).numpy() if len(shape) == 3 else smooth[:, 0].numpy()
    split, colours = Split(np.arange(images) % 3, arrays=arrays), (0.5, 0.4, 0.3)
    return Source("made", ["a", "b", "c"], split, split, colours, (0.2, 0.3, 0.4), True, (0.2, 1.0), 0.875)


@pytest.fixture
def here():
    """here(source, split, **fields): the loader of a GPU, on the CPU."""

    def build(source, split, augment=None, dtype=torch.float32, **fields):
        config = DataConfig(**{"image_size": 32, **fields})
        return DeviceLoader(
            source, split, config=config, global_batch=7, device="cpu", augment=augment, epochs=5, dtype=dtype
        )

    return build


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("shape", "size"), [((12, 12, 3), 40), ((40, 28, 3), 24), ((28, 28), 32), ((20, 31, 3), (48, 33))]
)
def test_pixels_are_pillows(here, loader_of, interpolation, split, shape, size):
    source = source_of(*shape)
    fields = {"image_size": size, "interpolation": interpolation}
    other = loader_of(source, split, backend="torchvision", global_batch=7, **fields)
    deviation = 255 * torch.tensor(source.std).view(3, 1, 1)
    for epoch in (0, 1) if split == "train" else (0,):
        for one, two in zip(here(source, split, **fields).epoch(epoch), other.epoch(epoch), strict=True):
            assert torch.equal(one.labels, two.labels) and torch.equal(one.weights, two.weights)
            assert one.images.stride() == two.images.stride()
            difference = (one.images - two.images).abs() * deviation
            assert difference.max() < 2.01 and difference.mean() < 0.2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_colours_as_the_network_takes_them(here, loader_of, shape, channels):
    source = source_of(*shape)
    one = next(here(source, "val", channels=channels).epoch(0)).images
    two = next(loader_of(source, "val", backend="torchvision", global_batch=7, channels=channels).epoch(0)).images
    assert one.shape == two.shape == (7, channels, 32, 32)
    assert (one - two).abs().max() < 2.01 / 255 / 0.2


@pytest.mark.parametrize("preset", ["light", "strong"])
def test_augmented_batches_have_the_same_draws(here, loader_of, preset):
    """Those of the twin but for what an operator makes of a grey level; labels of mixtures are the same ones."""
    source, augment = source_of(40, 40, 3), AugmentConfig(preset=preset)
    settings = {"augment": augment, "epochs": 5}
    other = loader_of(source, "train", backend="torchvision", global_batch=7, **settings)
    for one, two in zip(here(source, "train", augment).epoch(0), other.epoch(0), strict=True):
        assert torch.equal(one.labels, two.labels)
        assert (one.images - two.images).abs().mean() < 0.05


def test_half_an_epoch_goes_on_as_a_whole_one(here):
    source = source_of(12, 12, 3)
    whole, late = list(here(source, "train").epoch(3)), list(here(source, "train").epoch(3, 2))
    for one, two in zip(whole[2:], late, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)


def test_sixteen_bits_of_the_network(here):
    batch = next(here(source_of(12, 12, 3), "val", dtype=torch.bfloat16).epoch(0))
    assert batch.images.dtype == torch.bfloat16
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_weights_add_up_to_one():
    axes = torch.tensor([[3.0, 7, 3, 10], [0.4, 11.2, 0, 12]])
    for wanted in (5, 30):
        for interpolation in ("bilinear", "bicubic"):
            weights = window_weights(axes, 12, wanted, interpolation)
            assert weights.shape == (2, wanted, 12)
            torch.testing.assert_close(weights.sum(2), torch.ones(2, wanted))
            assert (weights[0, :, :3] == 0).all() and (weights[0, :, 10:] == 0).all()


def test_what_is_kept_on_a_device(monkeypatch):
    small = source_of(12, 12, 3).train
    assert fits_on_device(small)
    assert not fits_on_device(Split(small.labels, paths=["a.png"] * 24))
    sizes = np.empty(1, dtype=object)
    sizes[0] = small.array(0)
    assert not fits_on_device(Split(small.labels[:1], arrays=sizes))
    monkeypatch.setattr(on_device, "MOST", 24 * 12 * 12 * 3 - 1)
    assert not fits_on_device(small)


def test_the_plan_counts_it():
    source = source_of(12, 10, 3)
    feed = feed_of(source, DataConfig(image_size=32))
    assert feed.backend == "torch" and feed.side == 12
    assert feed.resident == 2 * source.train.arrays.nbytes and feed.device_bytes(7, 32, False) == 0
    assert feed.staged_bytes(7, 32, "bf16") == [4 * 7 * 3 * 12 * 32, *[4 * 7 * 3 * 32 * 32] * 2]
    assert feed_of(source, DataConfig(backend="torchvision")).resident == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_gpu_has_them(here, loader_of, split):
    source = source_of(12, 12, 3)
    loader = loader_of(source, split, backend="auto", device="cuda", global_batch=7)
    assert isinstance(loader, DeviceLoader)
    kept = []
    for one, two in zip(loader.epoch(0), here(source, split).epoch(0), strict=True):
        kept.append((one.images, two.images))
        assert one.images.is_cuda and torch.equal(one.labels.cpu(), two.labels)
    for images, expected in kept:
        assert (images.cpu() - expected).abs().max() < 1.01 / 255 / 0.2  # a level where its rounding is a tie
    loader.close()
    assert isinstance(loader_of(source, split, backend="torchvision", device="cuda"), type(loader)) is False
