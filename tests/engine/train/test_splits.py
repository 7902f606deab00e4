"""Whole runs on layouts: what is held out is written down and used again; a test split is measured once, at the end."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.use.evaluation import EvaluateConfig, run_evaluation


@pytest.fixture
def whole(photos) -> Path:
    """Class folders alone: 12 pictures of each of two classes."""
    for name in ("cat", "dog"):
        for path in sorted((photos / "val" / name).iterdir()):
            path.rename(photos / "train" / name / f"v{path.name}")
    for name in ("cat", "dog"):
        (photos / "train" / name).rename(photos / name)
    shutil.rmtree(photos / "train")
    shutil.rmtree(photos / "val")
    return photos


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


def test_a_held_out_share_is_the_runs_for_good(run_here, resume, weights, whole, tmp_path, capsys):
    run = tmp_path / "run"
    done = run_here(
        "--data.val-share", "0.25", "--epochs", "2", "--log.checkpoint-steps", "1", "--log.keep-checkpoints", "0"
    )
    assert "18 training and 6 val images" in done.out
    kept = json.loads((run / "split.json").read_text())
    assert len(kept["val"]) == 6 and all((whole / name).is_file() for name in kept["val"])
    assert rows_of(run, "epoch")[0]["val_images"] == 6
    last = weights()
    found = run_evaluation(EvaluateConfig(run))
    best = max(rows_of(run, "epoch"), key=lambda row: row["val_accuracy"])
    assert found["count"] == 6 and found["accuracy"] == best["val_accuracy"]
    resume("--resume", sorted((run / "checkpoints").iterdir())[2])
    assert weights() == last and json.loads((run / "split.json").read_text()) == kept
    shutil.copy(whole / kept["val"][0], whole / "cat" / "new.jpg")
    capsys.readouterr()
    assert run_evaluation(EvaluateConfig(run))["count"] == 6
    assert "18 -> 19 training images" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--optim.ema", "0.9", "--log.no-save-best")], ids=["plain", "average"])
def test_a_test_split_is_measured_once_with_the_kept_weights(run_here, resume, photos, tmp_path, flags):
    shutil.copytree(photos / "val", photos / "test")
    run = tmp_path / "run"
    done = run_here("--epochs", "2", *flags)
    assert "16 training and 8 val images, 8 test images for the end" in done.out
    (row,) = rows_of(run, "test")
    assert row["test_images"] == 8
    epochs = rows_of(run, "epoch")
    kept = epochs[-1] if flags else [one for one in epochs if one["best"]][-1]
    assert row["test_accuracy"] == kept["val_accuracy"] and row["epoch"] == kept["epoch"], "the same pictures as val"
    assert row["test_loss"] == pytest.approx(kept["val_loss"], rel=1e-5)
    resume("--resume", run)
    assert len(rows_of(run, "test")) == 1, "once"
    resume("--resume", run, "--epochs", "3")
    assert [one["step"] for one in rows_of(run, "test")] == [8, 12]
    found = run_evaluation(EvaluateConfig(run, split="test"))
    assert found["accuracy"] == rows_of(run, "test")[-1]["test_accuracy"] and found["split"] == "test"


def test_a_run_of_before_is_read_under_todays_names(run_here, tmp_path):
    from engine.report.compare import summary_table, write_report
    from engine.runs.history import read_history

    run_here("--epochs", "2")
    run = tmp_path / "run"
    today = read_history(run)
    text = (run / "metrics.jsonl").read_text().replace('"val_', '"test_')
    (run / "metrics.jsonl").write_text(text)
    before = read_history(run)
    assert before.best == today.best and "test_loss" in text and before.test is None
    assert f"{before.best['val_accuracy']:.2%}"[:4] in summary_table([run]).replace(" %", "%")
    assert "val accuracy" in write_report(run).read_text()


def test_a_missing_test_split_is_said(run_here, tmp_path):
    from engine.data.sources.source import DataError

    run_here()
    with pytest.raises(DataError, match="has no test split"):
        run_evaluation(EvaluateConfig(tmp_path / "run", split="test"))
    assert not torch.distributed.is_initialized()
