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


def test_metadata_that_lies_of_the_classes_is_told(weights, data, tmp_path):
    with pytest.raises(ConfigError, match="names 2 classes, and its head is for 3"):
        run_evaluation(EvaluateConfig(weights(classes=json.dumps(CLASSES[:2])), data=data, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
