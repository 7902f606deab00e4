"""Weights as files have them: what they say of themselves, what they do not, and what cannot be meant."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import archs
from engine.config import ConfigError
from engine.use.predict import load
from engine.use.weights import read_weights

from .conftest import CLASSES, PIXELS


def pixels(**changed) -> str:
    """What a file says of its pixels, with these fields in place of its own, whatever they are."""
    return json.dumps(asdict(PIXELS) | changed)


def test_a_library_s_own_file_of_a_network_that_only_it_has(tmp_path):
    """Nobody wrote the classes down, and the head is called as that library calls it."""
    theirs = pytest.importorskip("timm", reason="timm is not installed").create_model("test_resnet", num_classes=4)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors", "timm:test_resnet")
    assert found.class_names() == ["0", "1", "2", "3"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.build()(images), theirs.eval()(images))


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
        ({"classes": '["a", "b", "a"]'}, "what it says of itself cannot be meant: 2 classes are called 'a'"),
        ({"image_size": "9999999"}, "image_size is 9999999, not a side of 1 to 16,384 pixels"),
        ({"preprocessing": pixels(image_size=65_500)}, "the image size can be at most 16,384 pixels a side, not 65500"),
        ({"preprocessing": pixels(mean=(float("nan"), 0.5, 0.4))}, "mean and std must be finite"),
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


@pytest.mark.parametrize(
    ("network", "facts", "told"),
    [
        ("vit_s16", {"image_size": "12000"}, r"stem\.positions is \[1, 17, 384\], not \[1, 562501, 384\]"),
        ("vit_s16", {"preprocessing": pixels(image_size=96)}, "was built for 64x64 pixels, not"),
        (
            "mobilenetv2",
            {"options": '{"width": 1e5}'},
            r"conv\.weight is \[32, 3, 3, 3\], not \[3200000, 3, 3, 3\]",
        ),
        ("mobilenetv2", {"options": '{"width": 1e9}'}, "Storage size calculation overflowed"),
        ("mobilenetv2", {"options": '{"width": Infinity}'}, "cannot convert float infinity to integer"),
    ],
)
def test_a_network_that_the_tensors_are_not_of_takes_no_memory(weights, network, facts, told):
    """Some of these would be larger than any machine's memory."""
    path = weights(network=network, **facts)
    with pytest.raises(ConfigError, match=f"{path}: .*{told}"):
        load(path)


def test_a_library_s_file_with_odd_names_is_told(tmp_path):
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    for text, told in {"{": "classes is", '["a", "a", "b"]': "called 'a'", '["a", "b"]': "names 2 classes"}.items():
        save_file(state, tmp_path / "theirs.safetensors", metadata={"classes": text})
        with pytest.raises(ConfigError, match=f"theirs.safetensors.* {told}"):
            load(tmp_path / "theirs.safetensors", arch="resnet18")


def test_a_batch_that_no_memory_holds_is_told_by_the_file(weights, pictures, monkeypatch):
    """Before anything is decoded."""
    import psutil

    predictor = load(weights(), batch_size=4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * 64 * 3 * 4 * 3))
    assert len(predictor.predict(pictures[:3])) == 3
    with pytest.raises(ConfigError, match=r"model\.safetensors: a batch of 4 images of 64 px is .* smaller --batch"):
        predictor.predict(pictures)


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
