"""Images that are not square: cut to their own shape, the same by both backends, and as torchvision cuts them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from engine.config import ConfigError, DataConfig, RunConfig, from_yaml, parse, to_yaml
from engine.data.graph.crops import evaluation_region, fixed_window, resized_sizes, training_window
from engine.data.preprocessing import Preprocessing

WIDE = Preprocessing((0, 0, 0), (1, 1, 1), 0.875, "bilinear", (48, 80))
UNIT = st.floats(0, 1, exclude_max=True, width=32)


def test_flags_yaml_and_metadata_have_both_sides(tmp_path):
    config = parse(["--image-size", "96", "160"])
    assert config.data.image_size == (96, 160) == config.data.side
    assert parse(["--image-size", "96", "96"]).data.image_size == 96, "a square has one side however it is written"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml").data == config.data
    (tmp_path / "short.yaml").write_text("data: {image_size: [96, 160]}")
    assert from_yaml(tmp_path / "short.yaml").data.image_size == (96, 160)
    assert Preprocessing.from_json(WIDE.to_json(), "w") == WIDE
    assert "48x80 px" in WIDE.describe()
    assert Preprocessing.named_by(WIDE.into(DataConfig())) == WIDE


def test_growing_images_are_square():
    with pytest.raises(ConfigError, match="grows square images, and these are 96x160"):
        DataConfig(image_size=(96, 160), progressive_from=48)
    with pytest.raises(ConfigError, match=r"--image-size must be at least 8 pixels .* not 96x4"):
        RunConfig(data=DataConfig(image_size=(96, 4)))


@given(st.integers(8, 700), st.integers(8, 700), st.sampled_from([(96, 160), (160, 96), (8, 200)]), UNIT)
def test_the_evaluation_s_crop_lies_inside_and_touches_two_edges_of_the_box(height, width, image_size, share):
    crop = 0.5 + share / 2
    sizes = np.array([[height, width]])
    resized = resized_sizes(sizes.astype(np.float64), image_size, crop)[0]
    box = [int(side / crop + 1e-6) for side in image_size]
    assert (resized >= box).all() and (resized == box).any(), "covered, and no larger than that takes"
    top, left, bottom, right = evaluation_region(sizes, image_size, crop)[0]
    assert 0 <= top < bottom <= height * (1 + 1e-6) and 0 <= left < right <= width * (1 + 1e-6)


@given(
    st.integers(40, 700),
    st.integers(40, 700),
    st.tuples(UNIT, UNIT, UNIT, UNIT),
    st.sampled_from([(96, 160), (64, 16)]),
)
def test_training_windows_have_the_network_s_shape_within_a_third(height, width, draws, image_size):
    draws = np.array([draws], np.float32)
    wanted = image_size[1] / image_size[0]
    start, shape = training_window(np.array([[height, width]]), draws, (0.3, 0.6), image_size)
    assert (start >= 0).all() and (start + shape <= [height, width]).all()
    if 0.9 < width / height / wanted < 1.1:
        rounding = 1 + 2 / shape.min()
        assert 3 / 4 / rounding <= shape[0, 1] / shape[0, 0] / wanted <= 4 / 3 * rounding
    start, shape = fixed_window(np.array([[height, width]]), draws, 0.8, image_size)
    assert (start >= 0).all() and (start + shape <= [height, width]).all()
    assert abs(shape[0, 1] - shape[0, 0] * wanted) <= 1 + wanted


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_backends_make_the_same_pixels(photo_files, files_source, loader_of, split):
    loaders = [
        loader_of(files_source(photo_files), split, backend=backend, image_size=(48, 80), global_batch=12)
        for backend in ("dali", "torchvision")
    ]
    one, other = (next(loader.epoch(0)).images for loader in loaders)
    assert one.shape == other.shape == (12, 3, 48, 80)
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert 255 * (one - other).abs().mean(dim=(1, 2, 3)).max() <= 1


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_evaluation_is_torchvision_s_resize_and_centre_crop(photo_files, files_source, loader_of, backend):
    loader = loader_of(files_source(photo_files), "val", backend=backend, image_size=(48, 80), global_batch=12)
    images = next(loader.epoch(0)).images
    for path, ours in zip(photo_files, images, strict=True):
        picture = Image.open(path)
        scale = max(54 / picture.height, 91 / picture.width)  # 48 and 80 over 0.875
        size = [int(picture.height * scale + 1e-6), int(picture.width * scale + 1e-6)]
        theirs = v2.functional.center_crop(v2.functional.resize(picture, size, antialias=True), [48, 80])
        theirs = v2.functional.pil_to_tensor(theirs).float() / 255
        assert 255 * (ours - theirs).abs().mean() <= 1


@pytest.mark.parametrize(
    "augment", [{"policy": "randaugment"}, {"erasing": 1.0, "mixup": 0.5, "cutmix": 1.0}, {"crop": "fixed"}]
)
def test_augmented_images_keep_their_shape(photo_files, files_source, loader_of, augment):
    from engine.config import AugmentConfig

    settings = {"image_size": (48, 80), "global_batch": 12, "augment": AugmentConfig(**augment), "epochs": 1}
    one, other = (
        next(loader_of(files_source(photo_files), backend=backend, **settings).epoch(0))
        for backend in ("dali", "torchvision")
    )
    assert one.images.shape == (12, 3, 48, 80)
    assert 255 * (one.images - other.images).abs().mean() <= 2
