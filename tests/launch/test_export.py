"""`launch/export.py`: files that say what they are, a check on pictures, and what cannot be meant."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from engine.config import ConfigError
from engine.use.export import command
from engine.use.export.command import ExportConfig
from engine.use.predict import load
from launch import export

from .test_predict import MADE, with_one_that_is_none


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return MADE.write_weights(tmp_path_factory.mktemp("run") / "model.safetensors", network="squeezenet1_1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with ten pictures and a file that is none."""
    return with_one_that_is_none(tmp_path_factory.mktemp("pictures"))


ENDINGS = [
    ("x.pt2", [], "a file of --format onnx ends in .onnx (.pt2 is that of --format torch-export)"),
    ("x.onnx", ["--format", "torch-export"], "ends in .pt2 (.onnx is that of --format onnx)"),
    ("x.pth", ["--format", "safetensors-timm"], "a file of --format safetensors-timm ends in .safetensors"),
    ("x.safetensors", [], "(.safetensors is that of --format safetensors-timm or safetensors-torchvision)"),
    ("x.onnxx", [], "a file of --format onnx ends in .onnx"),
]
"""Names of outputs that are of another format, and what is said."""


def run(*arguments) -> int:
    return command.run_export(command.parse([str(argument) for argument in arguments]))


def test_onnx_is_checked_and_says_what_it_is(checkpoint, pictures, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    out = tmp_path / "x.onnx"
    assert run("--checkpoint", checkpoint, "--output", out, "--check", pictures) == 0
    said = capsys.readouterr().out
    assert "in fp32 and the file in fp32, 10 pictures, 1 unreadable left out: the same class in 100.00%" in said
    facts = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == MADE.CLASSES and facts["network"] == "squeezenet1_1"
    assert json.loads(facts["preprocessing"])["interpolation"] == "bicubic"
    assert len(facts["weights_sha256"]) == 64 and facts["run"] == checkpoint.parent.name


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_s_own_file(pictures, tmp_path, capsys, library):
    weights = MADE.write_weights(tmp_path / "model.safetensors")
    out = tmp_path / "x.safetensors"
    shape = ("--format", f"safetensors-{library}", "--output", out, "--check", pictures)
    assert run("--checkpoint", weights, *shape) == 0
    assert "the same class in 100.00%" in capsys.readouterr().out
    if library == "timm":
        timm = pytest.importorskip("timm", reason="timm is not installed")
        theirs = timm.create_model("resnet18", num_classes=3, checkpoint_path=str(out)).eval()
    else:
        from torchvision.models import resnet18

        theirs = resnet18(num_classes=3).eval()
        theirs.load_state_dict(load_file(out))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load(weights).model(images), rtol=1e-4, atol=1e-4)
    with safe_open(out, framework="numpy") as file:
        facts = file.metadata()
    assert json.loads(facts["classes"]) == MADE.CLASSES
    if library == "timm":
        assert json.loads(facts["pretrained_cfg"])["crop_pct"] == 0.9
    again = load(out, arch="resnet18")  # and back, with what it says of itself
    assert again.classes == MADE.CLASSES and again.preprocessing == MADE.PIXELS


def test_a_check_that_fails_is_told_by_the_code(checkpoint, pictures, tmp_path, monkeypatch):
    from engine.use.export import check

    wrong = lambda path: lambda images: np.array([[0.0, 0.0, 100.0]] if images.mean() > 120 else [[100.0, 0.0, 0.0]])  # noqa: E731
    monkeypatch.setattr(check, "torch_export_runner", wrong)
    shape = ("--format", "torch-export", "--output", tmp_path / "x.pt2", "--check", pictures)
    assert run("--checkpoint", checkpoint, *shape) == 1


@pytest.mark.parametrize("form", ["torch-export", "safetensors-timm", "safetensors-torchvision"])
def test_onnx_operators_are_of_no_other_format(tmp_path, form):
    with pytest.raises(ConfigError, match=f"--opset is for --format onnx: a file of --format {form} has no ONNX"):
        ExportConfig(tmp_path, format=form, opset=20)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checkpoint", "{weights}", "--output", "{there}"], "exists; remove it, or give another name"),
        (["--checkpoint", "{weights}", "--output", "{empty}/no/x.onnx"], "there is no folder"),
        (["--checkpoint", "{weights}", "--output", "{empty}/x.onnx", "--check", "{empty}"], "holds no pictures"),
        (
            ["--checkpoint", "{weights}", "--output", "{empty}/x.onnx", "--check", "{there}"],
            "none of its 1 pictures can be read",
        ),
        (["--checkpoint", "{weights}", "--format", "safetensors-timm"], "squeezenet1_1 has no model of timm"),
        (["--checkpoint", "{empty}"], "neither a run folder"),
        *((["--checkpoint", "{weights}", "--output", "{empty}/" + name, *more], told) for name, more, told in ENDINGS),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(checkpoint, tmp_path, monkeypatch, capsys, arguments, told):
    names = {"weights": checkpoint, "empty": tmp_path / "empty", "there": tmp_path / "there.onnx"}
    names["empty"].mkdir()
    names["there"].write_text("mine")
    monkeypatch.setattr("sys.argv", ["export.py", *(argument.format(**names) for argument in arguments)])
    assert export.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and said.count("\n") == 1
    assert names["there"].read_text() == "mine" and not list(names["empty"].iterdir())


@pytest.mark.slow
def test_digits_trained_exported_and_right_without_this_project(launch, tmp_path):
    """What predict has right, the exported file has right in a process that cannot import the project."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    from engine.data.sources.open import open_source

    out = tmp_path / "run"
    shape = ["--arch", "resnet18", "--image-size", "32", "--epochs", "3", "--batch-size", "64", "--log.no-plots"]
    launch(*shape, "--precision", "fp32", "--output", out, script="launch/train.py")
    assert run("--checkpoint", out, "--output", tmp_path / "x.onnx") == 0
    val = open_source("digits").val
    found = load(out, precision="fp32").predict(val.paths, top_k=1)
    right = [int(one.classes[0]) == label for one, label in zip(found, val.labels.tolist(), strict=True)]
    assert len(right) == 359 and sum(right) > 250
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in val.paths]
    np.savez(tmp_path / "digits.npz", images=np.stack(pixels))
    code = (
        "import numpy, onnxruntime, json, sys\n"
        "session = onnxruntime.InferenceSession('x.onnx', providers=['CPUExecutionProvider'])\n"
        "images = numpy.load('digits.npz')['images']\n"
        "shares = session.run(['probabilities'], {'images': images})[0]\n"
        "names = json.loads(session.get_modelmeta().custom_metadata_map['classes'])\n"
        "assert not {'torch', 'engine'} & sys.modules.keys()\n"
        "print(json.dumps([names[label] for label in shares.argmax(1)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    labels = val.labels.tolist()
    assert all(int(theirs[place]) == labels[place] for place, good in enumerate(right) if good)
