"""Weights as files have them: what they say of themselves, what they do not, and what cannot be meant."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import archs
from engine.config import ConfigError
from engine.use.predict import load
from engine.use.weights import read_weights

from .conftest import CLASSES, PIXELS


def test_what_a_run_wrote_is_read(weights):
    found = read_weights(weights())
    assert (found.arch, found.classes, found.preprocessing) == ("resnet18", CLASSES, PIXELS)
    assert found.class_count == 3 and not found.build().training


def test_weights_that_do_not_name_their_pixels_are_fed_imagenet_s(weights):
    found = read_weights(weights(preprocessing=None))
    assert found.preprocessing is None
    assert found.expected().mean == (0.485, 0.456, 0.406) and found.expected().image_size == 64


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"classes": json.dumps(["a", "b"])}, "names 2 classes, and its head is for 3"),
        ({"classes": "{"}, "what it says of itself cannot be read"),
        ({"image_size": None}, "what it says of itself cannot be read"),
        ({"preprocessing": "[1]"}, "model.safetensors: the preprocessing that the weights name cannot be read"),
        ({"arch": "vgg11"}, r"not the weights of vgg11: 20 tensors missing \(.*; 120 tensors not of it \(stages\."),
        ({"arch": "vgg1100"}, "no architecture is called 'vgg1100'"),
        ({"arch": None}, "does not say which network it is of; name it with --arch"),
        ({"options": json.dumps({"width": 0.5})}, "resnet18 takes no option 'width'"),
    ],
)
def test_metadata_that_lies_is_told(weights, facts, told):
    path = weights(**facts)
    with pytest.raises(ConfigError, match=f"(?s){path}.*{told}|{told}"):
        load(path)


def test_a_file_that_is_cut_is_told(weights):
    path = weights()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)


def test_another_network_than_named_is_told(weights):
    with pytest.raises(ConfigError, match="is of resnet18, not of vgg11"):
        load(weights(), arch="vgg11")


@pytest.mark.parametrize(
    ("arch", "model"), [("resnet18", "resnet18"), ("googlenet", "googlenet"), ("densenet121", "densenet121")]
)
def test_a_library_s_file_is_read_under_its_keys(tmp_path, arch, model):
    torch.manual_seed(0)
    drawn = {"init_weights": False} if model == "googlenet" else {}
    theirs = torchvision.models.get_model(model, num_classes=5, **drawn).eval()
    if model == "googlenet":
        theirs.transform_input = True  # as its published weights expect
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    found = read_weights(tmp_path / "theirs.safetensors", arch)
    assert found.class_names() == ["0", "1", "2", "3", "4"] and found.preprocessing is None
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.build()(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_a_library_s_file_of_another_network_is_told(tmp_path):
    save_file(archs.build("darknet53", 4).state_dict(), tmp_path / "theirs.safetensors")
    with pytest.raises(ConfigError, match="not the weights of resnet18"):
        load(tmp_path / "theirs.safetensors", arch="resnet18")
    save_file({"a": torch.zeros(3)}, tmp_path / "nothing.safetensors")
    with pytest.raises(ConfigError, match="holds no head of a classifier"):
        load(tmp_path / "nothing.safetensors", arch="resnet18")
