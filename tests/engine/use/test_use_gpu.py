"""A trained network in use on a GPU: the classes that a CPU says, an evaluation, an exported file beside it."""

import numpy as np
import pytest
import torch

from engine.use.evaluation import EvaluateConfig, run_evaluation
from engine.use.export.command import ExportConfig, run_export
from engine.use.predict import load, split_of

from .conftest import CLASSES, make_pictures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_the_logits_are_a_cpu_s_and_features_come_along(weights, pictures, monkeypatch):
    path, split = weights(), split_of([*pictures, "gone.jpg"])
    there = load(path, precision="fp32", batch_size=4)
    assert there.device.type == "cuda" and next(there.model.parameters()).is_cuda
    found = list(there.answers(split, features=True, tta="flip"))
    monkeypatch.setattr("engine.step.plan.use_cuda", lambda: False)
    here = load(path, precision="fp32", batch_size=4)
    assert here.device.type == "cpu"
    expected = list(here.answers(split, features=True, tta="flip"))
    for one, other in zip(found, expected, strict=True):
        assert one.reasons == other.reasons
        for ours, theirs in ((one.logits, other.logits), (one.features, other.features)):
            largest = np.nanmax(np.abs(theirs))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * largest)
    assert found[-1].reasons[-1] == "No such file or directory"


def test_an_evaluation_counts_every_picture(weights, tmp_path):
    for name in CLASSES:
        make_pictures(tmp_path / "data" / "val" / name, 3)
    data, output = str(tmp_path / "data"), tmp_path / "evaluation"
    result = run_evaluation(EvaluateConfig(weights(), data=data, batch_size=4, precision="fp16", output=output))
    assert result["count"] == 9 and (output / "evaluation.json").is_file()


@pytest.mark.parametrize("kind", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_exported_file_agrees_with_it(weights, pictures, tmp_path, capsys, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    path, output = weights(network="squeezenet1_1"), tmp_path / "exported"
    assert run_export(ExportConfig(path, kind, output=output, check=str(pictures[0].parent))) == 0
    assert "10 pictures: the same class in 100.00%" in capsys.readouterr().out and output.is_file()
