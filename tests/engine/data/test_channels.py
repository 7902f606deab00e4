"""Grey images for networks of one channel: the same by both backends, augmented as their copies in three colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config import AugmentConfig, ConfigError, DataConfig, parse
from engine.data.backend import chosen_backend
from engine.data.preprocessing import Preprocessing
from engine.data.sources.source import Source, Split

GREY = {"channels": 1, "mean": (0.4,), "std": (0.25,)}


def test_values_are_a_number_a_channel(tmp_path):
    data = parse(["--data.channels", "1", "--data.mean", "0.4", "--data.std", "0.25"]).data
    assert (data.channels, data.mean, data.std) == (1, (0.4,), (0.25,))
    with pytest.raises(ConfigError, match=r"--data.mean needs a number for each of --data.channels 1, not 3"):
        DataConfig(channels=1, mean=(0.1, 0.2, 0.3))
    wanted = Preprocessing((0.4,), (0.25,), 0.9, "bicubic", 32, channels=1)
    assert Preprocessing.from_json(wanted.to_json(), "w") == wanted == Preprocessing.named_by(wanted.into(DataConfig()))
    with pytest.raises(ConfigError, match="a value for each of 1 channels"):
        Preprocessing((0.4,) * 3, (0.2,) * 3, 0.9, "bicubic", 32, channels=1)


def test_statistics_become_those_of_grey_images_and_back(numbered):
    found = Preprocessing.of(numbered(3), DataConfig(channels=1))
    assert found.mean == (pytest.approx(0.299 * 0.5 + 0.587 * 0.4 + 0.114 * 0.3),) and found.std == (
        pytest.approx(0.3),
    )
    assert found.of_channels(3).mean == found.mean * 3
    alike = Preprocessing((0.1307,) * 3, (0.3081,) * 3, 1.0, "bilinear", 28)
    assert alike.of_channels(1).mean == (0.1307,) and alike.of_channels(1).of_channels(3) == alike


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_backends_show_the_same_greys(photo_files, files_source, loader_of, split):
    settings = {**GREY, "image_size": 48, "global_batch": 12}
    one, other = (
        next(loader_of(files_source(photo_files), split, backend=backend, **settings).epoch(0)).images
        for backend in ("dali", "torchvision")
    )
    assert one.shape == other.shape == (12, 1, 48, 48)
    assert 255 * 0.25 * (one - other).abs().mean(dim=(1, 2, 3)).max() <= 1


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_a_grey_picture_is_its_rgb_copy_s_channel(tmp_path, files_source, loader_of, backend):
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / "rgb.png")
    source = files_source([tmp_path / "grey.png", tmp_path / "rgb.png"])
    settings = {"backend": backend, "image_size": 32, "global_batch": 2}
    in_colours = next(loader_of(source, "val", **settings).epoch(0)).images
    alone = next(loader_of(source, "val", **settings, channels=1, mean=(0.0,), std=(1.0,)).epoch(0)).images
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(alone.expand(-1, 3, -1, -1), in_colours)


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("shape", [(9, 12, 12), (9, 12, 12, 3)])
def test_arrays_of_both_kinds(loader_of, backend, shape):
    arrays = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    split = Split(np.zeros(9, np.int64), arrays=arrays)
    source = Source("made", ["all"], split, split, (0, 0, 0), (1, 1, 1), False, (1.0, 1.0), 1.0)
    images = next(loader_of(source, "val", backend=backend, image_size=12, channels=1, global_batch=9).epoch(0)).images
    grey = [np.asarray(Image.fromarray(one).convert("L")) for one in arrays]
    assert torch.equal((images[:, 0] * 255).round().to(torch.uint8), torch.from_numpy(np.stack(grey)))


@pytest.mark.parametrize(
    "augment",
    [
        {"policy": "randaugment", "magnitude": 15},
        {"jitter": (0.5, 0.5, 0.5, 0.3), "rotation": 20.0},
        {"policy": "augmix", "erasing": 1.0},
        {"mixup": 0.5, "cutmix": 1.0},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_augmented_greys_are_those_of_their_copies_in_colour(tmp_path, files_source, loader_of, augment):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (5, 7), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC).save(path)
    settings = {"image_size": 32, "global_batch": 6, "augment": AugmentConfig(**augment), "epochs": 1}
    in_colours = next(loader_of(files_source(paths), **settings).epoch(0))
    alone = next(loader_of(files_source(paths), **settings, channels=1, mean=(0.0,), std=(1.0,)).epoch(0))
    assert alone.images.shape == (6, 1, 32, 32) and torch.equal(alone.labels, in_colours.labels)
    assert torch.equal(alone.images.expand(-1, 3, -1, -1), in_colours.images)


def test_the_cache_keeps_greys(photo_files, files_source, loader_of, tmp_path, monkeypatch):
    from engine.data.decoded.choice import decoded_source
    from engine.data.fingerprint import fingerprint_of

    monkeypatch.setenv("HCR_CACHE", str(tmp_path))
    source = files_source(photo_files)
    config = DataConfig(image_size=48, cache="disk", workers=1, **GREY)
    kept = decoded_source(source, config, 0.875, fingerprint_of(source))
    sizes = [Image.open(path).size for path in photo_files]
    assert kept.source.train.decoded.pixels.nbytes == sum(width * height for width, height in sizes)
    settings = {**GREY, "image_size": 48, "global_batch": 12, "backend": chosen_backend("auto")}
    cached = next(loader_of(kept.source, **settings).epoch(0)).images
    plain = next(loader_of(source, **settings).epoch(0)).images
    assert 255 * 0.25 * (cached - plain).abs().mean() <= 1
    coloured = decoded_source(source, DataConfig(image_size=48, cache="disk", workers=1), 0.875, fingerprint_of(source))
    assert coloured.source.train.decoded.image(0).shape[2] == 3, "one that is kept for colours is another file"
