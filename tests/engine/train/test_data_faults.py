"""Data that goes, shrinks, changes its classes or cannot be read: nothing wrong is trained on, nothing good is lost."""

import json
import shutil

import pytest

from engine.data.sources import reading
from engine.recovery.checkpoint import checkpoint_folders


def kept(run) -> list[str]:
    return [path.name for path in checkpoint_folders(run / "checkpoints")]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_a_split_without_a_readable_image_is_an_error(photos, run_here, tmp_path, split, backend):
    """W7: `finished`, 0.00 % is the best, exit 0, it was."""
    for path in (photos / split).rglob("*.jpg"):
        path.write_text("x")
    done = run_here("--data.backend", backend, code=2)
    assert f"no readable image in {split}/" in done.err
    assert not kept(tmp_path / "run") and not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_one_is_a_warning(photos, run_here, tmp_path, split):
    for path in (photos / split / "dog").iterdir():
        path.write_text("x")
    done = run_here()
    assert f"warning: no image of dog in {split}/ could be read" in done.out
    assert "unreadable images left out" in done.out and kept(tmp_path / "run")


def test_one_unreadable_image_alone_in_a_batch_is_no_error(photos, run_here):
    """A batch of one, as a tail may be: the step is left out, the run goes on."""
    (photos / "train" / "cat" / "000.jpg").write_text("x")
    done = run_here("--batch-size", 1)
    assert "finished" in done.out and "left out: 1 (" in done.out


def moved_away(monkeypatch, photos, at: int, loader: str = "train"):
    """The data folder is gone when batch `at` of an epoch of that split is asked for."""
    from engine.data.graph.dali import DaliLoader

    original = DaliLoader._batch

    def batch(self, position):
        if position.step == at and photos.exists() and self.train == (loader == "train"):
            photos.rename(photos.with_name("moved"))
        return original(self, position)

    monkeypatch.setattr(DaliLoader, "_batch", batch)


@pytest.mark.parametrize("loader", ["train", "val"])
def test_data_that_vanishes_in_mid_run(photos, run_here, resume, weights, tmp_path, monkeypatch, loader):
    """F4: an error, and nothing is saved after it; put back, the run ends with the bits of an undisturbed one."""
    many = ["--epochs", 2, "--batch-size", 2, "--log.checkpoint-steps", 3, "--data.prefetch", 1]
    run_here(*many)
    whole = weights()
    shutil.rmtree(tmp_path / "run")
    moved_away(monkeypatch, photos, 4 if loader == "train" else 0, loader)
    done = run_here(*many, code=2)
    assert "could be read" in done.err and "No such file" in done.err
    before = kept(tmp_path / "run")
    assert all(int(name[-8:]) <= (7 if loader == "train" else 8) for name in before)
    monkeypatch.undo()
    photos.with_name("moved").rename(photos)
    resume()
    assert weights() == whole


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_a_read_error_is_tried_again_and_a_decode_error_is_not(photo_loader, monkeypatch, backend):
    """F4: a disk that failed once does not bar an image for the session."""
    loader, path = photo_loader(backend)
    asked = []
    original = reading.Path.read_bytes

    def read_bytes(self):
        if str(self) == path:
            asked.append(path)
            if len(asked) == 1:
                raise OSError(5, "Input/output error")
        return original(self)

    monkeypatch.setattr(reading.Path, "read_bytes", read_bytes)
    counts = [sum(batch.readable for batch in loader.epoch(epoch)) for epoch in range(3)]
    assert counts == [15, 16, 16] and len(loader.bad_images) == 1
    assert loader.bad_images[0].transient and loader.bad_images[0].reason == "Input/output error"


@pytest.fixture
def photo_loader(photos):
    """A training loader over the photos, read one batch at a time in this process, and the path of one of them."""
    from engine.config import DataConfig
    from engine.data.backend import make_loader
    from engine.data.sources.open import open_source

    made = []

    def build(backend: str):
        source = open_source("folder", photos)
        config = DataConfig(image_size=32, backend=backend, workers=1, prefetch=1)
        made.append(make_loader(source, "train", config=config, global_batch=4, device="cpu"))
        if backend == "torchvision":
            loader = made[-1]
            from torch.utils.data import DataLoader

            loader._loader = DataLoader(
                loader._loader.dataset, sampler=loader._positions, batch_size=None, collate_fn=lambda item: item
            )
        return made[-1], source.train.paths[3]

    yield build
    for loader in made:
        loader.close()


def test_renamed_classes_are_refused_on_resume(photos, run_here, resume, tmp_path):
    """W1, F5: labels would swap silently."""
    run_here()
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "zebra")
    before = (tmp_path / "run/config.yaml").read_bytes(), (tmp_path / "run/metrics.jsonl").read_bytes()
    done = resume("--epochs", 2, code=2)
    assert "(cat, dog)" in done.err and "(dog, zebra)" in done.err
    assert before == ((tmp_path / "run/config.yaml").read_bytes(), (tmp_path / "run/metrics.jsonl").read_bytes())


def test_other_images_are_said_between_epochs_and_refused_within_one(photos, run_here, resume, tmp_path):
    """F5, W3: the loop never ended."""
    run_here("--log.checkpoint-steps", 3, "--log.keep-checkpoints", 0)
    for path in (photos / "train").glob("*/00[4567].jpg"):
        path.unlink()
    done = resume("--epochs", 2)
    assert "the data changed (16 -> 8 training images)" in done.out
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    done = resume("--epochs", 3, code=2)
    assert "16 -> 8 training images" in done.err and "step 3 of an epoch" in done.err


def test_an_evaluation_that_is_not_finite_is_divergence(run_here, tmp_path):
    """W2: the last step of an epoch ruins the weights; neither they nor a checkpoint of them are kept."""
    done = run_here("--batch-size", 16, "--lr", "1e30", code=1)
    assert "the loss on the val images is not finite" in done.err and "Try a lower --lr" in done.err
    assert not kept(tmp_path / "run") and not (tmp_path / "run/model.safetensors").exists()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["event"] == "nan" and not [row for row in rows if row["kind"] == "epoch"]


def test_an_unreadable_file_whose_name_is_no_text(photos, run_here, tmp_path):
    """W6: told, written down, read back as it is called, and shown on the page; the run goes on."""
    import os
    import sys

    from engine.recovery.start import take_any_name

    path = photos / "train" / "cat" / os.fsdecode(b"caf\xe9.jpg")
    path.write_text("x")
    take_any_name(sys.stdout)  # as the entry points do
    done = run_here("--log.plots")
    assert "caf\\udce9.jpg" in done.out and "finished" in done.out
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows if row.get("event") == "bad_image"] == [str(path)]
    assert "caf" in (tmp_path / "run/report.html").read_text()
