"""The arithmetic of crops, held to torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from engine.data.graph.crops import evaluation_region, resized_shorter_side, training_window

SIDES = st.integers(1, 3000)
UNIT = st.floats(0, 1, exclude_max=True, width=32)
SCALES = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted).map(tuple)


@given(SIDES, SIDES, st.tuples(UNIT, UNIT, UNIT, UNIT), SCALES)
def test_windows_lie_inside_the_image(height, width, draws, scale):
    start, shape = training_window(np.array([[height, width]]), np.array([draws], dtype=np.float32), scale)
    assert start.dtype == shape.dtype == np.int32
    assert (start >= 0).all() and (shape >= 1).all()
    assert (start + shape <= [height, width]).all()


@given(st.integers(200, 3000), st.floats(0.75, 4 / 3), st.tuples(UNIT, UNIT, UNIT, UNIT), SCALES)
def test_area_and_aspect_stay_in_their_ranges(height, ratio, draws, scale):
    width = round(height * ratio)
    _, shape = training_window(np.array([[height, width]]), np.array([draws], dtype=np.float32), scale)
    crop_height, crop_width = shape[0].tolist()
    assert 0.95 * scale[0] <= crop_height * crop_width / (height * width) <= 1.05 * scale[1]
    assert 0.72 < crop_width / crop_height < 1.39


@given(st.tuples(UNIT, UNIT, UNIT, UNIT))
def test_a_long_panorama_gets_the_largest_window_of_the_nearest_ratio(draws):
    _, shape = training_window(np.array([[300, 6000]]), np.array([draws], dtype=np.float32), (0.9, 1.0))
    assert shape[0].tolist() == [300, 400]


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (300, 400)])
def test_scale_one_keeps_the_whole_image(size):
    draws = np.random.default_rng(0).random((50, 4), dtype=np.float32)
    start, shape = training_window(np.tile(size, (50, 1)), draws, (1.0, 1.0))
    assert (start == 0).all() and (shape == size).all()


def test_every_position_is_reached_and_none_is_favoured():
    draws = np.random.default_rng(1).random((30_000, 4), dtype=np.float32)
    draws[:, :2] = 0.5  # one shape: 6×6 of 12×12
    start, shape = training_window(np.tile([12, 12], (30_000, 1)), draws, (0.25, 0.25))
    assert (shape == 6).all()
    for counts in (np.bincount(start[:, 0]), np.bincount(start[:, 1])):
        assert len(counts) == 7 and counts.min() > 0.9 * counts.mean()


@pytest.mark.parametrize("size", [(375, 500), (400, 400), (500, 300)])
def test_windows_are_spread_as_torchvision_spreads_them(size):
    draws = np.random.default_rng(2).random((8000, 4), dtype=np.float32)
    _, shape = training_window(np.tile(size, (8000, 1)), draws, (0.08, 1.0))
    image = v2.functional.to_image(Image.new("RGB", size[::-1]))
    crop = v2.RandomResizedCrop(224)
    torch.manual_seed(0)
    theirs = np.array([[p["height"], p["width"]] for p in (crop.make_params([image]) for _ in range(4000))])
    for measure in (lambda s: s[:, 0] * s[:, 1] / np.prod(size), lambda s: s[:, 1] / s[:, 0]):
        quantiles = [np.percentile(measure(windows), [10, 25, 50, 75, 90]) for windows in (shape, theirs)]
        np.testing.assert_allclose(*quantiles, atol=0.03)


@pytest.mark.parametrize(
    ("size", "crop", "side"),
    [
        (224, 0.875, 256),
        (299, 0.875, 341),
        (299, 299 / 342, 342),
        (64, 1.0, 64),
        (96, 0.875, 109),
        (224, 0.95, 235),
        (224, 224 / 232, 232),
    ],
)
def test_shorter_side_before_the_crop(size, crop, side):
    assert resized_shorter_side(size, crop) == side


@given(st.integers(8, 700), st.integers(8, 700), st.sampled_from([(224, 0.875), (63, 0.9), (64, 1.0)]))
def test_evaluation_region_is_torchvisions_resize_and_centre_crop(height, width, setting):
    image_size, eval_crop = setting
    side = resized_shorter_side(image_size, eval_crop)
    image = Image.new("L", (width, height))
    resized = v2.functional.resize(image, [side], interpolation=v2.InterpolationMode.NEAREST)
    new_width, new_height = resized.size
    top, left = round((new_height - image_size) / 2), round((new_width - image_size) / 2)
    region = evaluation_region(np.array([[height, width]]), image_size, eval_crop)[0]
    expected = [top / new_height, left / new_width, (top + image_size) / new_height, (left + image_size) / new_width]
    np.testing.assert_allclose(region / [height, width, height, width], expected, rtol=1e-5, atol=1e-6)
