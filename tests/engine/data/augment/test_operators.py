"""Each operator at each magnitude is torchvision v2's, to a fraction of a grey level, in any company."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from engine.data.augment import operators
from engine.data.augment.operators import NUMBERS, OPERATORS, blur_radius

ALLOWED = 0.15
"""Grey levels in the mean: rounding, and single pixels that lie between two neighbours."""
SHARES = (-0.9, -0.3, 0.01, 0.5, 0.9)


def sheared(image, by, axis):
    angles = [0.0, 0.0]
    angles[axis] = math.degrees(math.atan(by))
    return F.affine(image, 0.0, [0, 0], 1.0, angles, center=[0, 0])


def moved(image, share, axis):
    shift = [0, 0]
    shift[axis] = int(share * image.shape[2 - axis])
    return F.affine(image, 0.0, shift, 1.0, [0.0, 0.0])


def blurred(image, sigma):
    side = 2 * blur_radius(*image.shape[1:]) + 1
    return F.gaussian_blur(image, [side, side], [sigma, sigma])


def brightened(image, added):
    return torch.where(image < 128, (image.float() + added).clamp(0, 255).to(torch.uint8), image)


THEIRS = {
    "shear-x": (lambda image, by: sheared(image, by, 0), SHARES),
    "shear-y": (lambda image, by: sheared(image, by, 1), SHARES),
    "translate-x": (lambda image, by: moved(image, by, 0), SHARES),
    "translate-y": (lambda image, by: moved(image, by, 1), SHARES),
    "rotate": (F.rotate, (-135.0, -30.0, 7.0, 90.0, 180.0)),
    "brightness": (lambda image, by: F.adjust_brightness(image, 1 + by), SHARES),
    "color": (lambda image, by: F.adjust_saturation(image, 1 + by), SHARES),
    "contrast": (lambda image, by: F.adjust_contrast(image, 1 + by), SHARES),
    "sharpness": (lambda image, by: F.adjust_sharpness(image, 1 + by), SHARES),
    "posterize": (lambda image, bits: F.posterize(image, int(bits)), (0.0, 1.0, 4.0, 7.0, 8.0)),
    "solarize": (lambda image, share: F.solarize(image, 255 * share), (0.0, 0.2, 0.5, 0.9, 1.0)),
    "solarize-add": (brightened, (0.0, 20.0, 50.0, 110.0)),
    "auto-contrast": (lambda image, _: F.autocontrast(image), (0.0,)),
    "equalize": (lambda image, _: F.equalize(image), (0.0,)),
    "invert": (lambda image, _: F.invert(image), (0.0,)),
    "hue": (F.adjust_hue, (-0.5, -0.2, 0.01, 0.3, 0.5)),
    "grayscale": (lambda image, _: F.rgb_to_grayscale(image, 3), (0.0,)),
    "blur": (blurred, (0.1, 0.5, 1.0, 2.0)),
    "vertical-flip": (lambda image, _: F.vertical_flip(image), (0.0,)),
}


@pytest.fixture(scope="module")
def pictures(photo) -> torch.Tensor:
    """Six photographs of 72 × 56, the last two grey and black."""
    found = [np.asarray(photo(seed, 72, 56)) for seed in range(6)]
    found[4] = np.repeat(found[4].mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    found[5] = np.zeros_like(found[5])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def test_every_operator_is_compared():
    assert list(THEIRS) == list(OPERATORS) and sorted(NUMBERS.values()) == list(range(1, len(OPERATORS) + 1))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_operator_is_torchvisions(name, channels_last, pictures):
    theirs, magnitudes = THEIRS[name]
    pictures = pictures if channels_last else pictures.contiguous()
    before = pictures.clone()
    for magnitude in magnitudes:
        ours = OPERATORS[name](pictures, torch.full((len(pictures),), magnitude))
        expected = torch.stack([theirs(image, magnitude) for image in pictures])
        assert ours.dtype == torch.uint8 and ours.shape == pictures.shape
        assert (ours.float() - expected.float()).abs().mean() <= ALLOWED, magnitude
    assert torch.equal(pictures, before), "an operator writes into its input"


@pytest.mark.parametrize("name", OPERATORS)
def test_each_image_has_a_magnitude_of_its_own(name, pictures):
    _, magnitudes = THEIRS[name]
    drawn = torch.tensor([magnitudes[number % len(magnitudes)] for number in range(len(pictures))])
    together = OPERATORS[name](pictures, drawn)
    for number in range(len(pictures)):
        alone = OPERATORS[name](pictures[number : number + 1], drawn[number : number + 1])
        assert torch.equal(together[number : number + 1], alone)


def test_small_pictures_are_borne():
    for side in (1, 2, 3, 8):
        images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
        for name, operator in OPERATORS.items():
            if name == "blur" and side == 1:
                continue  # nothing to reflect: images have at least 8 pixels
            assert operator(images, torch.full((2,), 0.5)).shape == images.shape


def test_the_blurs_window_fits():
    assert blur_radius(224, 224) == 11 and blur_radius(32, 64) == 1 and blur_radius(2, 2) == 1
    assert operators.BLUR_SHARE == 0.1


@pytest.mark.slow
def test_on_photographs(unpacked):
    """Real ones, at 224 pixels, both ways in which a batch can lie."""
    from PIL import Image

    paths = sorted(unpacked("photos").rglob("*.*"))[:24]
    images = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]
    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    for name, (theirs, magnitudes) in THEIRS.items():
        for magnitude in magnitudes:
            ours = OPERATORS[name](pictures, torch.full((len(pictures),), magnitude))
            expected = torch.stack([theirs(image, magnitude) for image in pictures])
            assert (ours.float() - expected.float()).abs().mean() <= ALLOWED, (name, magnitude)
