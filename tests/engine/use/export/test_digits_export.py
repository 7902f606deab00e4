"""A run on the digits as an ONNX file, used by a process that has neither this project nor torch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from engine.data.bad_images import decode
from engine.data.sources.open import open_source
from engine.use.export.command import ExportConfig, run_export
from engine.use.predict import load

pytestmark = pytest.mark.slow

ELSEWHERE = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
images = numpy.load("images.npy")
shares = session.run(["probabilities"], {"images": images})[0]
assert not {"torch", "engine", "archs", "kernels"} & sys.modules.keys()
json.dump([classes[label] for label in shares.argmax(axis=1)], open("found.json", "w"))
"""


def test_a_file_is_right_wherever_predict_is_on_all_digits(root, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    run = tmp_path / "run"
    command = [sys.executable, "launch/train.py", "--config", "configs/digits.yaml", "--arch", "convnet_bn"]
    subprocess.run([*command, "--epochs", "3", "--output", str(run)], cwd=root, check=True, stdout=subprocess.PIPE)
    source = open_source("digits")
    images = [np.array(decode(source.val.read(place))) for place in range(len(source.val))]
    truth = [source.classes[label] for label in source.val.labels]
    answers = load(run).predict(images, top_k=1)
    assert run_export(ExportConfig(run, "onnx", output=tmp_path / "digits.onnx")) == 0
    np.save(tmp_path / "images.npy", np.stack(images))
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, env=alone, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    right = [place for place, answer in enumerate(answers) if answer.classes == [truth[place]]]
    assert len(found) == len(truth) == 359 and len(right) > 300
    assert [place for place in right if found[place] != truth[place]] == []
