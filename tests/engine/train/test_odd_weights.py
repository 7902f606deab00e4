"""Weights whose metadata lies, in a run that begins with them or learns from them: refused before there is a folder."""

import json
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import save_file

import archs

TRUE = {"mean": [0.5] * 3, "std": [0.25] * 3, "eval_crop": 1.0, "interpolation": "bilinear", "image_size": 32}


@pytest.fixture
def lying(tmp_path):
    """lying(**facts): weights of the tests' network for two classes, in a file that says so but for `facts`."""

    def write(known=("cat", "dog"), **facts):
        torch.manual_seed(1)
        said = {"arch": "convnet_bn", "classes": json.dumps(known), "options": "{}", "image_size": "32"}
        said |= {"preprocessing": json.dumps(TRUE)} | facts
        state = archs.build("convnet_bn", len(known), image_size=32).state_dict()
        save_file(state, tmp_path / "w.safetensors", metadata=said)
        return tmp_path / "w.safetensors"

    return write


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"classes": '["cat", "dog", "cow"]'}, "names 3 classes, and its head is for 2"),
        ({"classes": '["bird", "cow", "pig"]'}, "names 3 classes, and its head is for 2"),  # none of them the data's
        ({"classes": '["cat"]'}, "names 1 classes, and its head is for 2"),
        ({"classes": '["cat", "cat"]'}, "2 classes are called 'cat'"),
        ({"classes": "cat"}, "classes is 'cat'"),
        ({"preprocessing": json.dumps(TRUE | {"image_size": 65_500})}, "at most 16,384 pixels a side, not 65500 px"),
        ({"preprocessing": json.dumps(TRUE | {"std": [1, float("nan"), 1]})}, "mean and std must be finite"),
    ],
)
@pytest.mark.parametrize("finetune", ["all", "head"])
def test_a_run_that_begins_with_them_is_refused_by_the_file(run_here, lying, tmp_path, facts, told, finetune):
    path = lying(**facts)
    done = run_here("--pretrained", path, "--finetune", finetune, code=2)
    assert done.err.startswith(f"error: --pretrained {path}: ") and told in done.err and done.err.count("\n") == 1
    assert "assumed" not in done.out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"classes": '["cat", "cow", "dog"]'}, "names 3 classes, and its head is for 2"),
        ({"classes": '["dog", "dog"]'}, "2 classes are called 'dog'"),
        ({"image_size": "65500"}, "image_size is 65500, not a side of 1 to 16,384 pixels"),
        ({"options": '{"widths": 2}'}, "convnet_bn takes no option 'widths'"),
        ({"arch": "resnet18"}, "not the weights of resnet18"),
    ],
)
def test_a_run_that_learns_from_them_is_refused_by_the_file(run_here, lying, tmp_path, facts, told):
    path = lying(**facts)
    done = run_here("--distill", path, code=2)
    assert done.err.startswith(f"error: --distill {path}") and told in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_what_is_wrong_with_a_file_is_said_before_its_pixels_are(run_here, tmp_path, content):
    path = tmp_path / "nosuch.safetensors"
    if content is not None:
        path.write_bytes(content)
    done = run_here("--pretrained", path, code=2)
    assert done.err.startswith(f"error: --pretrained {path}") and "pixels" not in done.out
    assert not (tmp_path / "run").exists()


def test_pixels_are_said_once_the_weights_are_in(run_here, lying):
    path = lying()
    said = run_here("--pretrained", path).out
    assert said.index("the head knows all 2 classes") < said.index(f"{path} expects 32 px, crop 1, bilinear")
    assert said.count("expects 32 px") == 1


DECAY, RATE = ["--optim.layer-decay", 0.5], ["--optim.backbone-lr", 0.01]


@pytest.mark.parametrize("flags", [DECAY, RATE, [*DECAY, "--finetune", "0"]])
def test_rates_of_what_is_frozen_are_refused_before_there_is_a_folder(run_here, lying, tmp_path, flags):
    done = run_here("--pretrained", lying(), "--finetune", "head", *flags, code=2)
    assert f"error: {flags[0]} is for what lies below the last layer" in done.err and "loaded" not in done.out
    assert not (tmp_path / "run").exists()


def test_a_batch_that_no_memory_holds_is_refused_before_there_is_a_folder(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**30))
    done = run_here("--image-size", 16_384, "--batch-size", 1000, code=2)
    assert "a batch of 16 images of 16384 px is 48.00 GiB, and this machine has 1.00 GiB: " in done.err
    assert not (tmp_path / "run").exists()
