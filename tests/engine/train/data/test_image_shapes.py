"""Runs on images of 96 × 160: trained, resumed, evaluated, predicted and exported."""

import pytest
import torch

from engine.config import ConfigError
from engine.runs.history import read_history
from engine.use.export.graph import Prepare
from engine.use.predict import load

SHAPE = ("--image-size", "96", "160")


def test_a_run_of_wide_images_is_of_use(run_here, resume, photos, weights, tmp_path):
    from engine.use.evaluation import evaluate

    done = run_here(*SHAPE, "--epochs", "2")
    assert "96x160 px" in done.out
    run_here(*SHAPE, "--epochs", "1", "--output", tmp_path / "half", "--optim.schedule", "constant")
    run_here("--resume", tmp_path / "half", "--epochs", "2", base=False)
    assert weights("half") == weights()
    figures = evaluate(tmp_path / "run")
    best = max(row["val_accuracy"] for row in read_history(tmp_path / "run").epochs)
    assert figures["accuracy"] == pytest.approx(best, abs=1e-6)
    predictor = load(tmp_path / "run")
    assert predictor.preprocessing.image_size == (96, 160)
    pictures = sorted(map(str, (photos / "val").rglob("*.jpg")))
    found = predictor.predict(pictures)
    right = sum(one.classes[0] in str(one.path) for one in found)
    assert right / len(pictures) == pytest.approx(best, abs=1e-6)
    assert Prepare(predictor.preprocessing)(torch.zeros(1, 50, 70, 3, dtype=torch.uint8)).shape == (1, 3, 96, 160)


def test_patches_that_do_not_tile_are_told(run_here):
    told = run_here("--arch", "vit_d6", "--image-size", "96", "168", code=2).err
    assert "patches do not tile an image of 96x168 pixels" in told


@pytest.mark.slow
def test_weights_of_another_shape_are_told_by_networks_with_a_weight_a_place(run_here, tmp_path):
    from engine.use.evaluation import evaluate

    run_here("--arch", "mixer_d12", "--image-size", "32", "64")
    with pytest.raises(ConfigError, match="built for 32x64 pixels"):
        evaluate(tmp_path / "run", image_size=(64, 32))
