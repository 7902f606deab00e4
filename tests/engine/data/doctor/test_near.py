"""Near duplicates: what was changed is found, what is merely alike is not, with and without cells."""

import io

import numpy as np
import pytest
from PIL import Image

from engine.data.doctor import near
from engine.data.doctor.look import SIDE, _squeezed


@pytest.fixture(scope="module")
def pictures(photo) -> list[Image.Image]:
    return [photo(seed, 96 + seed % 3 * 32, 128) for seed in range(60)]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(io.BytesIO(data.getvalue()))


CHANGES = {
    "recompressed": lambda image: jpeg(image, 30),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "cropped": lambda image: image.crop((5, 3, image.width - 4, image.height - 6)),
    "cropped aside": lambda image: image.crop((10, 0, image.width, image.height - 8)),
    "grey": lambda image: image.convert("L"),
    "squeezed": lambda image: image.resize((image.width, image.height * 3 // 4), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(pictures, change):
    changed = [CHANGES[change](image) for image in pictures[:12]]
    small = np.stack([_squeezed(image) for image in [*pictures, *changed]])
    found = near.near_duplicates(small, threads=2)
    assert {(one, other) for one, other, _ in found} == {(place, 60 + place) for place in range(12)}


def test_unlike_pictures_are_not_found(pictures):
    assert near.near_duplicates(np.stack([_squeezed(image) for image in pictures])) == []


def test_flat_and_few_pictures(pictures):
    flat = np.full((4, SIDE, SIDE), 128, np.uint8)
    assert near.near_duplicates(flat) == [] and near.near_duplicates(flat[:1]) == []
    two = np.stack([_squeezed(pictures[0]), _squeezed(CHANGES["half"](pictures[0]))])
    assert [pair[:2] for pair in near.near_duplicates(two)] == [(0, 1)]


def test_a_crowded_set_asks_for_more():
    """Strokes at slightly different angles are alike by more than 0.98 and are not one picture."""
    assert near.threshold_of(np.full(100, 0.7)) == near.LEAST
    assert near.threshold_of(np.full(100, 0.96)) == pytest.approx(0.998)
    assert near.threshold_of(np.full(5, 0.96)) == near.LEAST


def test_neighbours_in_cells_are_those_of_all_pairs():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3000, 63)).astype(np.float32)
    values[1500:1600] = values[:100] + 0.3 * generator.normal(size=(100, 63))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    cosine, other = near.neighbours(values)
    in_cells, cells = near.neighbours(values, all_pairs=0)
    exact = values @ values.T
    np.fill_diagonal(exact, -2)
    np.testing.assert_array_equal(other[:, 0], exact.argmax(axis=1))
    assert (np.diff(cosine, axis=1) <= 0).all()
    there = cells[:100, 0] == np.arange(1500, 1600)
    assert there.mean() >= 0.95
    np.testing.assert_allclose(in_cells[:100, 0][there], cosine[:100, 0][there], rtol=1e-5)
    assert (cells != np.arange(3000)[:, None]).all()
