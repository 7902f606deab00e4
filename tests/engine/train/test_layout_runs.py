"""Runs on lists, shards and datasets: folds, growing images, bad and vanishing images, a disk of another layout."""

import json
import os
from pathlib import Path

import pytest

from engine.data.shards.write import make_shards
from engine.data.sources.open import open_source

LAYOUTS = ["list", "shards", "dataset"]


@pytest.fixture
def laid_out(photos, tmp_path):
    """laid_out(layout): the photos in it, with whatever was done to them before."""

    def lay(layout: str) -> Path:
        if layout == "shards":
            make_shards(open_source("folder", photos), tmp_path / "shards", 10_000, 1)
            return tmp_path / "shards"
        parts = {name: sorted((photos / name).rglob("*.jpg")) for name in ("train", "val")}
        if layout == "list":
            rows = [f"{path.relative_to(tmp_path)},{path.parent.name},{name}" for name in parts for path in parts[name]]
            (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
            return tmp_path / "list.csv"
        datasets = pytest.importorskip("datasets")
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        saved = {}
        for name, paths in parts.items():
            images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
            labels = [int(path.parent.name == "dog") for path in paths]
            saved[name] = datasets.Dataset.from_dict({"image": images, "label": labels}, features=kinds)
        datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return lay


def rows_of(run: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


FOLDS, GROWING = ("--data.folds", "3", "--data.fold", "1"), ("--data.progressive-from", "16")


@pytest.mark.parametrize(
    ("layout", "flags"),
    [
        ("shards", FOLDS),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("list", FOLDS), ("dataset", FOLDS)]),
        *(pytest.param(layout, GROWING, marks=pytest.mark.slow) for layout in LAYOUTS),
    ],
)
def test_folds_and_growing_images_are_those_of_folders(run_here, laid_out, tmp_path, weights, layout, flags):
    flags = ("--epochs", "2", "--log.no-save-best", *flags)
    run_here(*flags)
    run_here(*flags, "--data.root", laid_out(layout), "--output", tmp_path / "other")
    assert weights("other") == weights()


@pytest.mark.parametrize(
    "layout", ["shards", *(pytest.param(one, marks=pytest.mark.slow) for one in ("list", "dataset"))]
)
def test_a_run_goes_on_from_another_layout(run_here, laid_out, tmp_path, weights, photos, resume, layout):
    run_here("--epochs", "2", "--log.checkpoint-steps", "1", "--log.keep-checkpoints", "0", "--log.no-save-best")
    last, other = weights(), laid_out(layout)
    photos.rename(tmp_path / "gone") if layout != "list" else None
    first = sorted((tmp_path / "run" / "checkpoints").iterdir())[1]
    resume("--resume", first, "--data.root", other)
    assert weights() == last


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_broken_picture_is_named_and_left_out(run_here, laid_out, photos, tmp_path, layout):
    broken = photos / "train" / "cat" / "003.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    root = laid_out(layout)
    done = run_here("--data.root", root)
    assert "unreadable image, left out: " in done.out and "003.jpg" in done.out
    assert rows_of(tmp_path / "run", "epoch")[0]["train_images"] == 15
    (event,) = [row for row in rows_of(tmp_path / "run", "event") if row["event"] == "bad_image"]
    assert event["path"].startswith(str(root) if layout != "list" else str(photos)) and event["path"].endswith(
        "003.jpg"
    )


@pytest.mark.parametrize("layout", ["list", "shards"])
def test_files_that_vanish_in_mid_epoch_end_the_run_in_words(run_here, laid_out, photos, monkeypatch, layout):
    from engine.train.trainer import Trainer

    root, step = laid_out(layout), Trainer._following

    def vanish(trainer):
        for shard in root.glob("*.tar") if root.is_dir() else ():
            os.truncate(shard, 0)  # it is open
        for path in photos.rglob("*.jpg"):
            path.unlink()
        return step(trainer)

    monkeypatch.setattr(Trainer, "_following", vanish)
    done = run_here("--data.root", root, "--data.prefetch", "1", "--epochs", "3", code=2)
    assert "no image of a whole batch could be read; " in done.err
    assert ("ends before it: it was cut" if layout == "shards" else "No such file") in done.err
