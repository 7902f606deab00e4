"""What an evaluation refuses before it looks at a picture."""

import json

import pytest

from engine.config import ConfigError
from engine.use.evaluation import EvaluateConfig, run_evaluation

from .conftest import CLASSES, make_pictures


@pytest.fixture
def data(tmp_path):
    for name in CLASSES:
        make_pictures(tmp_path / "data" / "val" / name, 1)
    return str(tmp_path / "data")


def test_an_output_that_is_a_file_is_told_before_the_work(weights, data, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for output in ("mine", "mine/below"):
        with pytest.raises(ConfigError, match=r"--output .*: .*mine is a file, not a folder"):
            run_evaluation(EvaluateConfig(weights(), data=data, output=tmp_path / output))
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("asked", ["dali", "torchvision"])
def test_pictures_are_decoded_by_the_backend_that_is_asked_for(weights, data, tmp_path, monkeypatch, asked):
    """Row A18 of issue 16: it could not be chosen."""
    if asked == "dali":
        pytest.importorskip("nvidia.dali")
    from engine.data import backend

    made = []

    def noted(*what, **how):
        made.append(type(loader := build(*what, **how)).__name__)
        return loader

    build = backend.make_loader
    monkeypatch.setattr(backend, "make_loader", noted)
    result = run_evaluation(EvaluateConfig(weights(), data=data, backend=asked, output=tmp_path / "out"))
    assert made == [{"dali": "DaliLoader", "torchvision": "TorchvisionLoader"}[asked]]
    assert result["count"] == len(CLASSES)


def test_metadata_that_lies_of_the_classes_is_told(weights, data, tmp_path):
    with pytest.raises(ConfigError, match="names 2 classes, and its head is for 3"):
        run_evaluation(EvaluateConfig(weights(classes=json.dumps(CLASSES[:2])), data=data, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_data_that_a_runs_test_images_were_taken_from_is_said(tmp_path):
    """Folds, or a share of class folders: all of it holds what was trained on. Other data, and a part that was there
    as such, do not."""
    from pathlib import Path

    from engine.config import DataConfig
    from engine.use.evaluation import holds_training_images
    from engine.use.weights import Weights

    def told(data: str, **trained) -> bool:
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "split.json").unlink(missing_ok=True)
        if trained.pop("share", False):
            (run / "split.json").write_text("{}")
        kept = DataConfig(**{"name": "folder", "root": tmp_path / "photos"} | trained)
        return holds_training_images(data, Weights(Path("w"), {}, "x", {}, None, 32, kept, run=run))

    photos = str(tmp_path / "photos")
    assert told(photos, folds=3) and told(f"{photos}/val", folds=3) and told(photos, share=True)
    assert told("digits", name="digits", root=None, folds=3)
    assert not told(photos) and not told(str(tmp_path / "others"), folds=3) and not told("mnist", folds=3)
