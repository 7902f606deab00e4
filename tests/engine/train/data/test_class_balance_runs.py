"""Whole runs on a long tail: what is said, what is kept, exact after a stop."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.config import LogConfig, OptimConfig
from engine.step.standing import Progress
from engine.train.evaluate import class_means


@pytest.fixture
def tail(photos) -> Path:
    """The class `dog` keeps two of its eight training pictures."""
    for path in sorted((photos / "train" / "dog").iterdir())[2:]:
        path.unlink()
    return photos


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.parametrize(
    "flags", [("--data.balance", "sampler"), ("--optim.logit-adjust", "1")], ids=["sampler", "adjust"]
)
def test_a_run_goes_on_exactly(run_here, resume, weights, tail, tmp_path, flags):
    done = run_here(*flags, "--epochs", "2", "--log.checkpoint-steps", "1", "--log.keep-checkpoints", "0")
    assert "classes 4:1, cat 8 to dog 2 training images" in done.out
    whole = weights()
    first = sorted((tmp_path / "run" / "checkpoints").iterdir())[1]
    resume("--resume", first)
    assert weights() == whole


def test_weights_of_classes_change_the_run_and_are_kept_with_it(run_here, tail, tmp_path):
    plain = run_here("--output", tmp_path / "plain")
    weighed = run_here("--output", tmp_path / "weighed", "--data.balance", "effective", "--data.balance-beta", "0.9")
    assert "nothing is done about it" in plain.out and "effective numbers, β 0.9" in weighed.out
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "weighed"))
    assert any((one[name] != other[name]).any() for name in one)
    refused = run_here("--resume", tmp_path / "weighed", "--data.balance", "none", base=False, code=2)
    assert "data.balance effective -> none" in refused.err


def test_the_best_weights_by_what_was_asked(make_trainer):
    trainer = make_trainer(optim=OptimConfig(epochs=6, batch_size=16, lr=0.03), log=LogConfig(every=2, best="balanced"))
    trainer.fit()
    rows = rows_of(trainer.folder.path, "epoch")
    assert trainer.progress.best_score == max(row["balanced_accuracy"] for row in rows)
    kept = [row for row in rows if row["best"]][-1]
    assert kept["balanced_accuracy"] == trainer.progress.best_score and kept["epoch"] == trainer.progress.best_epoch


def test_balanced_accuracy_and_macro_f1_are_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score, f1_score

    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0] * 50 + [1] * 5 + [2] * 2)
    guess = torch.randint(0, 3, (57,), generator=generator)
    tallies = torch.stack([torch.bincount(one, minlength=4) for one in (truth, guess, truth[truth == guess])])
    balanced, f1 = class_means(tallies.double())  # the fourth class has no images
    assert balanced == pytest.approx(balanced_accuracy_score(truth, guess))
    assert f1 == pytest.approx(f1_score(truth, guess, average="macro"))


def test_a_loss_that_falls_is_better_and_another_measure_begins_anew():
    progress = Progress()
    assert progress.is_best("loss", -2.0, 0.5) and not progress.is_best("loss", -2.5, 0.9)
    progress.epoch = 1
    assert progress.is_best("accuracy", 0.4, 0.4) and (progress.best_by, progress.best_epoch) == ("accuracy", 2)
    old = Progress(best_accuracy=0.8, best_epoch=3)  # of a checkpoint that knew nothing else
    assert not old.is_best("accuracy", 0.7, 0.7) and old.is_best("accuracy", 0.81, 0.81)
