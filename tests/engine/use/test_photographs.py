"""Networks trained on real photographs, used here and through timm: the same pixels, the same classes."""

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.bad_images import decode
from engine.data.sources.reading import read
from engine.use import evaluation
from engine.use.export.command import ExportConfig, run_export
from engine.use.export.graph import Prepare
from engine.use.pictures import named_pictures
from engine.use.predict import Predictor, split_of
from engine.use.weights import Weights, read_weights

pytestmark = pytest.mark.slow

SIDE = 96
"""Pixels of the networks' images."""
TRAINED = {"resnet18": ("4", "0.001"), "vit_s16": ("2", "0.0003")}
"""Epochs on the 400 photographs, and the rate."""


@pytest.fixture(scope="module")
def folders(unpacked) -> dict[str, list[str]]:
    """Folder -> its pictures: 150 photographs of five flowers, 200 of anything, from 68×56 to 2400×1632."""
    found = {"flowers": unpacked("flowers") / "val", "photos": unpacked("photos")}
    return {name: named_pictures([str(folder)]) for name, folder in found.items()}


@pytest.fixture(scope="module")
def trained(unpacked, root, tmp_path_factory) -> Callable[[str], Path]:
    """trained(network): a run on the flowers, made once."""
    done: dict[str, Path] = {}

    def train(network: str) -> Path:
        if network not in done:
            epochs, rate = TRAINED[network]
            done[network] = tmp_path_factory.mktemp("runs") / network
            command = [sys.executable, "launch/train.py", "--arch", network, "--data.root", str(unpacked("flowers"))]
            command += ["--image-size", str(SIDE), "--epochs", epochs, "--lr", rate, "--batch-size", "32"]
            command += ["--optim.schedule", "cosine", "--log.no-plots", "--output", str(done[network])]
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
        return done[network]

    return train


def seen(weights: Weights, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [N, classes] logits, uint8-scaled float32 [N, 3, side, side] pixels) of our whole path from the file."""
    predictor = Predictor(weights, batch_size=50, precision="fp32")
    expected, forward, kept = weights.expected(), predictor._forward, []
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (expected.mean, expected.std))

    def watched(images: torch.Tensor) -> torch.Tensor:
        kept.append(255 * (images.float() * std + mean))
        return forward(images)

    predictor._forward = watched
    logits = np.concatenate([answers.logits for answers in predictor.answers(split_of(paths))])
    return logits, torch.cat(kept)[: len(paths)].numpy()


@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("network", list(TRAINED))
def test_timm_sees_the_same_pixels_and_says_the_same(
    trained, folders, tmp_path, record_property, network, interpolation, crop
):
    """Saved under timm's keys, loaded by timm, fed by timm's own transform."""
    timm = pytest.importorskip("timm", reason="timm is not installed: its path cannot be compared")
    weights = read_weights(trained(network))
    pixels = replace(weights.expected(), eval_crop=crop, interpolation=interpolation)
    file = tmp_path / "timm.safetensors"
    assert run_export(ExportConfig(trained(network), "safetensors-timm", output=file)) == 0
    name = {"resnet18": "resnet18", "vit_s16": "vit_small_patch16_224"}[network]
    size = {"img_size": SIDE} if network == "vit_s16" else {}
    theirs = timm.create_model(name, num_classes=5, checkpoint_path=str(file), **size).eval()
    how = {"mean": pixels.mean, "std": pixels.std, "crop_pct": crop, "interpolation": interpolation}
    transform = timm.data.create_transform((3, SIDE, SIDE), is_training=False, **how)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (pixels.mean, pixels.std))
    for folder, paths in folders.items():
        logits, ours = seen(replace(weights, preprocessing=pixels), paths)
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        apart = np.abs(255 * (images.numpy() * std + mean) - ours).mean(axis=(1, 2, 3))
        with torch.inference_mode():
            expected = torch.cat([theirs(batch) for batch in images.split(50)]).numpy()
        same = float((expected.argmax(1) == logits.argmax(1)).mean())
        record_property(f"{folder}: same class", same)
        record_property(
            f"{folder}: grey levels, mean, and of the worst picture", (apart.mean().item(), apart.max().item())
        )
        assert same >= 0.99 and apart.mean() <= 1 and np.isfinite(apart).all()
        assert len(np.unique(logits.argmax(1))) > 1, "it tells flowers apart"


def test_predict_has_the_evaluation_s_logits_bit_for_bit(trained, unpacked, folders, tmp_path, evaluated):
    run = trained("resnet18")
    figures = evaluation.run_evaluation(
        evaluation.EvaluateConfig(run, data=str(unpacked("flowers")), batch_size=64, output=tmp_path / "evaluation")
    )
    predictor = Predictor(read_weights(run), batch_size=64)
    paths = folders["flowers"]
    found = np.concatenate([answers.logits for answers in predictor.answers(split_of(paths))])
    expected = torch.cat(evaluated).numpy()[: len(paths)]
    assert np.array_equal(found, expected)
    right = [
        predictor.classes[label] == Path(path).parent.name for label, path in zip(found.argmax(1), paths, strict=True)
    ]
    assert np.mean(right) == pytest.approx(figures["accuracy"])


def test_an_onnx_file_says_of_raw_pictures_what_predict_says(trained, folders, tmp_path, record_property):
    """Pictures of 200 sizes, as they were decoded; onnxruntime resizes, cuts and classifies."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    from engine.use.export.graph_files import open_onnx

    file, paths = tmp_path / "flowers.onnx", folders["photos"]
    weights = read_weights(trained("resnet18"))
    assert run_export(ExportConfig(trained("resnet18"), "onnx", output=file)) == 0
    session, prepare = open_onnx(file), Prepare(weights.expected())
    logits, ours = seen(weights, paths)
    same, apart = [], []
    for path, expected, pixels in zip(paths, logits, ours, strict=True):
        raw = np.array(decode(read(path)))[None]
        assert raw.dtype == np.uint8 and raw.shape[3] == 3
        same.append(session.run(["logits"], {"images": raw})[0][0].argmax() == expected.argmax())
        apart.append(np.abs(prepare.pixels(torch.from_numpy(raw))[0].numpy() - pixels).mean())
    record_property("same class", float(np.mean(same)))
    record_property("grey levels, mean, and of the worst picture", (float(np.mean(apart)), float(np.max(apart))))
    assert np.mean(same) >= 0.995 and np.mean(apart) <= 1


def test_files_that_break_loaders_are_a_row_each(trained, unpacked, root, tmp_path):
    folder = unpacked("nasty")
    command = [sys.executable, "launch/predict.py", "--checkpoint", str(trained("resnet18")), str(folder)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "x.csv")], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(path.name for path in folder.iterdir() if path.suffix != ".tsv")
    for row in rows.values():
        assert bool(row["class_1"]) != bool(row["reason"])
    assert rows["giant_dims_65500.jpg"]["reason"] and rows["Portrait_5.jpg"]["class_1"]
    assert 0 < sum(bool(row["reason"]) for row in rows.values()) < 10
