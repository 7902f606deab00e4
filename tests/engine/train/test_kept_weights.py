"""model.safetensors is this run's best when it goes on: not gone, and not of an epoch that is done anew."""

import json
import shutil

import pytest

from engine.train.together.weights_file import epoch_of

KEPT = ("--epochs", "3", "--best", "loss", "--log.checkpoint-steps", "1", "--log.keep-checkpoints", "0")


@pytest.fixture
def run(run_here, photos, tmp_path):
    """A finished run of three epochs of four steps, each with a lower loss, and all its checkpoints."""
    shutil.copytree(photos / "val", photos / "test")
    run_here(*KEPT)
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if row["kind"] == "epoch"]
    assert sorted(losses, reverse=True) == losses and epoch_of(run / "model.safetensors") == "3"
    return run


@pytest.mark.parametrize("there", ["later", "gone", "torn"])
def test_weights_that_are_not_the_best_so_far_are_said_and_replaced(run, resume, weights, there):
    before = weights()
    path = run / "model.safetensors"
    if there == "gone":
        path.unlink()
    elif there == "torn":
        path.write_bytes(path.read_bytes()[:100])
    checkpoint = sorted((run / "checkpoints").iterdir())[4]  # in the second epoch
    done = resume("--resume", checkpoint)
    said = "is of epoch 3, which comes after step-00000005" if there == "later" else "is gone or damaged"
    assert f"{path} {said}" in done.out + done.err
    assert weights() == before and "test accuracy" in done.out


def test_where_they_are_the_best_so_far_nothing_is_said(run, resume):
    done = resume("--epochs", "4")
    assert "which were the best" not in done.out + done.err and "epoch 4/4" in done.out


def test_an_ended_run_without_its_weights_says_where_those_of_its_end_are(run, resume):
    (run / "model.safetensors").unlink()
    done = resume(code=2)
    assert "the run has ended" in done.err and "step-00000012" in done.err and len(done.err.splitlines()) == 1
