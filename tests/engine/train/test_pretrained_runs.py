"""The weights of one run in another one, and in an evaluation: by name, averaged, with what they were trained on."""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine.step.weights.files import file_metadata, named_classes, read_weight_file
from engine.use.evaluation import EvaluateConfig, run_evaluation
from engine.use.weights import read_weights


@pytest.fixture
def averaged(run_here, tmp_path):
    run_here("--optim.ema", 0.5)
    return tmp_path / "run"


def test_a_run_folder_gives_its_weights(averaged, run_here, tmp_path):
    done = run_here("--pretrained", averaged, "--output", tmp_path / "second")
    assert "the head knows all 2 classes" in done.out
    (checkpoint,) = (averaged / "checkpoints").iterdir()
    done = run_here("--pretrained", checkpoint, "--output", tmp_path / "third")
    assert "the head knows all 2 classes" in done.out
    best, kept = load_file(averaged / "model.safetensors"), read_weight_file(checkpoint, "")
    assert all(torch.equal(kept[name], best[name]) for name in best)  # the average, as the run itself evaluates
    assert named_classes(file_metadata(checkpoint), "w") == ["cat", "dog"]
    expected = json.loads(file_metadata(checkpoint)["preprocessing"])
    assert expected == json.loads(file_metadata(averaged)["preprocessing"])


def test_fine_tuning_goes_on_without_the_weights_that_it_began_with(averaged, run_here, tmp_path):
    """Its own are in its checkpoint; what was frozen is as it was, and the end is that of an undisturbed run."""
    shape = ["--pretrained", averaged, "--finetune", "1", "--optim.layer-decay", 0.5]
    run_here(*shape, "--epochs", 2, "--output", tmp_path / "whole")
    run_here(*shape, "--epochs", 1, "--output", tmp_path / "halves")
    before = load_file(averaged / "model.safetensors")
    averaged.rename(tmp_path / "gone")
    done = run_here("--resume", tmp_path / "halves", "--epochs", 2, base=False)
    assert "frozen: " in done.out and "loaded" not in done.out
    last = [max((tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "halves")]
    one, two = (read_weight_file(path, "") for path in last)
    assert last[0].name == last[1].name
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any(torch.equal(one[name], before[name]) for name in one if name.startswith("stem"))


def test_rows_of_a_head_go_by_name(averaged, run_here, photos, tmp_path):
    """W1: `cat, dog` and `bird, cat` are as many, and no row of `dog` becomes one of `cat`."""
    for split in ("train", "val"):
        (photos / split / "dog").rename(photos / split / "bird")
    done = run_here("--pretrained", averaged, "--output", tmp_path / "second")
    assert "the head knows cat by name, bird start anew" in done.out


def test_a_checkpoint_is_evaluated_as_its_run_does(averaged, photos, capsys):
    """W10."""
    (checkpoint,) = (averaged / "checkpoints").iterdir()
    best, kept = read_weights(averaged), read_weights(checkpoint)
    assert all(torch.equal(kept.tensors[name], best.tensors[name]) for name in best.tensors)
    assert kept.classes == ["cat", "dog"] and kept.trained_on == best.trained_on
    results = [run_evaluation(EvaluateConfig(one, precision="fp32")) for one in (averaged, checkpoint)]
    assert results[0]["loss"] == results[1]["loss"]
    (photos / "val" / "cat" / "000.jpg").unlink()
    capsys.readouterr()
    run_evaluation(EvaluateConfig(averaged, precision="fp32"))
    assert "the data changed (8 -> 7 val images) since the weights were trained" in capsys.readouterr().out


def test_flipped_weights_are_not_evaluated(averaged):
    from engine.config import ConfigError

    data = bytearray((averaged / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (averaged / "model.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        read_weights(averaged)
