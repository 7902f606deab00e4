"""The data at the head of a run: a quick look, an earlier examination, leaks refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from engine.config import parse
from engine.data.doctor.examine import examine, keep
from engine.data.fingerprint import fingerprint_of
from engine.data.sources.open import open_source
from engine.train.data.command import examine_data


@pytest.fixture
def photos(photos):
    """With held-out pictures of their own."""
    for number, path in enumerate(sorted((photos / "val").rglob("*.jpg"))):
        pixels = np.random.default_rng(5000 + number).integers(0, 255, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return photos


def test_a_run_says_what_it_is_fed(run_here, photos):
    shutil.copy(photos / "train/cat/000.jpg", photos / "val/cat/leak.jpg")
    done = run_here()
    assert "images      16 train, 9 val; 2 classes" in done.out
    assert "warning: 1 of 9 val images are training images too" in done.out and "no near duplicates" in done.out


def test_an_earlier_examination_is_used(run_here, photos):
    source = open_source("folder", photos)
    keep(source, fingerprint_of(source), examine(source))
    done = run_here()
    assert "every image, near duplicates included" in done.out and "all right" in done.out


def test_leaks_are_refused_before_anything_is_written(run_here, photos, tmp_path):
    shutil.copy(photos / "train/cat/000.jpg", photos / "val/cat/leak.jpg")
    done = run_here("--data.on-leak", "error", code=2)
    assert "1 of 9 val images are training images too" in done.err and "val: " in done.err
    assert not (tmp_path / "run").exists()
    (photos / "val/cat/leak.jpg").unlink()
    assert "examining 24 images" in run_here("--data.on-leak", "error").out


def test_wrong_data_is_told_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert examine_data(parse(["--data.root", str(tmp_path / "nowhere")])) == 2
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "runs").exists()
