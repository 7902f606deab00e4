"""Weights of coloured images in networks for grey ones, and the reverse: a grey picture keeps its copy's logits."""

import pytest
import torch

import archs
from archs.channels import Normalised, for_channels, stem_keys
from archs.weights import load_weights

IMAGENET = Normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ALIKE = Normalised((0.5,) * 3, (0.5,) * 3)
GREY = Normalised((0.45,), (0.225,))
SIZES = {"vit_d6": 32, "mixer_d12": 32, "gmlp_d6": 32, "inceptionv3": 75, "inceptionv3_fullres": 75}


def normalised(picture: torch.Tensor, how: Normalised) -> torch.Tensor:
    """[N, 1, H, W] of 0 to 1 -> [N, channels, H, W]."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (how.mean, how.std))
    return (picture - mean) / std


def trained(name: str, channels: int) -> archs.Classifier:
    """With statistics and biases that are not those of a new network."""
    torch.manual_seed(channels)
    network = archs.build(name, 5, image_size=SIZES.get(name, 64), in_channels=channels)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
    return network.eval()


def converted(name: str, network: archs.Classifier, channels: int, theirs, ours) -> archs.Classifier:
    other = archs.build(name, 5, image_size=SIZES.get(name, 64), in_channels=channels)
    loaded = load_weights(other, network.state_dict(), name, normalised=(theirs, ours))
    assert loaded.converted and not loaded.replaced
    return other.eval()


FEW = ("resnet18", "densenet40", "mobilenetv2", "convnet_bn")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in archs.names()])
def test_a_grey_picture_has_its_copy_s_logits(name):
    """Exactly, as all channels were normalised alike."""
    info = archs.lookup(name)
    SIZES.setdefault(name, max(32, info.minimum_size))
    picture = torch.rand(2, 1, SIZES[name], SIZES[name])
    coloured = trained(name, 3)
    with torch.no_grad():
        expected = coloured(normalised(picture, ALIKE))
        grey = converted(name, coloured, 1, ALIKE, Normalised((0.5,), (0.25,)))
        torch.testing.assert_close(
            grey(normalised(picture, Normalised((0.5,), (0.25,)))), expected, rtol=1e-4, atol=1e-4
        )
        alone = trained(name, 1)
        back = converted(name, alone, 3, GREY, Normalised(GREY.mean * 3, (0.2, 0.3, 0.4)))
        found = back(normalised(picture, Normalised(GREY.mean * 3, (0.2, 0.3, 0.4))))
        torch.testing.assert_close(found, alone(normalised(picture, GREY)), rtol=1e-4, atol=1e-4)


def test_means_that_differ_are_made_up_for_but_where_images_are_padded():
    picture, coloured = torch.rand(2, 1, 64, 64), trained("resnet18", 3)
    grey = converted("resnet18", coloured, 1, IMAGENET, GREY)
    with torch.no_grad():
        theirs, ours = (
            network.stem.conv(normalised(picture, how)) for network, how in ((coloured, IMAGENET), (grey, GREY))
        )
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-4)
    plain = converted("resnet18", coloured, 1, None, None)
    assert not torch.allclose(
        plain.stem.conv(normalised(picture, GREY))[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=0.05
    )


def test_patches_are_not_padded_so_nothing_differs():
    picture, coloured = torch.rand(2, 1, 32, 32), trained("vit_d6", 3)
    grey = converted("vit_d6", coloured, 1, IMAGENET, GREY)
    with torch.no_grad():
        expected = coloured(normalised(picture, IMAGENET))
        torch.testing.assert_close(grey(normalised(picture, GREY)), expected, rtol=1e-4, atol=1e-4)


def test_what_has_no_place_is_told():
    coloured = trained("densenet40", 3)
    other = archs.build("densenet40", 5, in_channels=1)
    assert "left out" in for_channels(other, coloured.state_dict(), IMAGENET, GREY).told
    assert "left out" not in for_channels(other, coloured.state_dict(), ALIKE, Normalised((0.5,), (0.2,))).told
    assert not for_channels(coloured, coloured.state_dict(), IMAGENET, IMAGENET).told


def test_a_stem_of_other_channels_alone_is_converted():
    wanted = {"a": torch.zeros(8, 1, 3, 3), "b": torch.zeros(8, 8, 3, 3), "c": torch.zeros(8, 1, 3, 3)}
    given = {"a": torch.zeros(8, 3, 3, 3), "b": torch.zeros(8, 4, 3, 3), "c": torch.zeros(8, 3, 5, 5)}
    assert stem_keys(given, wanted) == ["a"]
