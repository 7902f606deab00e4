"""The graph's own preparation against Pillow's filters and torchvision's crop, and against the loader's pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from engine.data.graph.crops import resized_shorter_side, resized_sizes
from engine.data.preprocessing import Preprocessing
from engine.use.export.graph import Prepare, RawGraph

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def differences(height, width, kind, crop, side=64) -> torch.Tensor:
    """|ours - theirs| in grey levels: Pillow's resize of the shorter side, torchvision's centre crop."""
    image = picture(height, width)
    shorter = resized_shorter_side(side, crop)
    resized = v2.functional.resize(image, [shorter], v2.InterpolationMode(kind))
    theirs = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, [side, side])).float()
    prepare = Prepare(Preprocessing(MEAN, STD, crop, kind, side))
    return (prepare.pixels(torch.from_numpy(np.array(image))[None])[0] - theirs).abs()


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("size", [(90, 120), (300, 200), (33, 50), (64, 64), (640, 480), (1, 1), (5, 300), (37, 1)])
def test_pixels_are_pillow_s(size, kind, crop):
    found = differences(*size, kind, crop)
    assert found.mean() < 0.3
    assert found.max() <= (1 if kind == "bilinear" else 5)  # Pillow clips between its two passes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["bilinear", "bicubic"]), st.floats(0.7, 1.0))
def test_pixels_are_pillow_s_at_any_size(height, width, kind, crop):
    assert differences(height, width, kind, crop, 32).mean() < 0.5


def test_normalised_as_the_weights_expect():
    grey = torch.full((1, 50, 70, 3), 100, dtype=torch.uint8)
    found = Prepare(Preprocessing(MEAN, STD, 0.9, "bicubic", 32))(grey)
    expected = (100 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(found, expected.view(1, 3, 1, 1).expand(1, 3, 32, 32))


def test_probabilities_are_the_softmax_of_the_logits():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
    graph = RawGraph(network, Preprocessing(MEAN, STD, 1.0, "bilinear", 8))
    probabilities, logits = graph(torch.randint(0, 256, (3, 20, 30, 3), dtype=torch.uint8))
    torch.testing.assert_close(probabilities, logits.softmax(1))
    assert logits.shape == (3, 5) and logits.dtype == torch.float32


@pytest.mark.parametrize("size", [(90, 120), (300, 200), (33, 500), (64, 64), (1, 1)])
def test_crops_that_are_not_square_are_pillow_s(size):
    image = picture(*size)
    sizes = resized_sizes(np.array([size], np.float64), (48, 80), 0.875)[0].astype(int).tolist()
    resized = v2.functional.resize(image, sizes, v2.InterpolationMode.BILINEAR)
    theirs = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, [48, 80])).float()
    prepare = Prepare(Preprocessing(MEAN, STD, 0.875, "bilinear", (48, 80)))
    found = (prepare.pixels(torch.from_numpy(np.array(image))[None])[0] - theirs).abs()
    assert found.mean() < 0.3 and found.max() <= 1
