"""The digits' cache: what is in it, and that it appears whole or not at all."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from engine.data.sources import digits as module
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError, Source
from engine.runs.cache import cache_folder
from tests.waiting import PATIENCE


def test_every_digit_is_there_once_stratified(digits: Source):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert digits.classes == [str(i) for i in range(10)]
    assert (len(digits.train), len(digits.val)) == (1438, 359)
    paths, labels = digits.train.paths + digits.val.paths, [*digits.train.labels, *digits.val.labels]
    numbers = [int(Path(path).stem) for path in paths]
    assert sorted(numbers) == list(range(1797))
    assert [bunch.target[number] for number in numbers] == labels
    shares = {d: n / (n + Counter(digits.train.labels)[d]) for d, n in Counter(digits.val.labels).items()}
    assert len(shares) == 10 and all(0.195 < share < 0.205 for share in shares.values())


def enlarged() -> np.ndarray:
    """All digits at 32×32 by torch's interpolation, in grey levels: [1797, 32, 32]."""
    from sklearn.datasets import load_digits

    originals = torch.from_numpy(load_digits().images * (255 / 16))[:, None]
    return F.interpolate(originals, size=32, mode="bilinear", align_corners=False)[:, 0].numpy()


def test_jpeg_keeps_the_grey_levels(digits: Source):
    images = enlarged()
    for path in digits.val.paths[::40]:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "L", (32, 32))
            assert np.abs(np.asarray(image) - images[int(Path(path).stem)]).mean() < 1.5


def test_normalisation_is_that_of_the_images(digits: Source):
    images = enlarged() / 255
    assert digits.mean[0] == pytest.approx(images.mean(), abs=1e-3)
    assert digits.std[0] == pytest.approx(images.std(), abs=1e-3)
    assert not digits.flip


def test_a_second_opening_writes_nothing(digits: Source, cache: Path, monkeypatch):
    monkeypatch.setattr(module, "write_digits", None)
    assert open_source("auto", cache=cache).train.paths == digits.train.paths


RACER = """
import sys
import sklearn.datasets
from engine.data.sources.digits import open_digits
print("ready", flush=True)
cache = sys.stdin.readline().strip()
source = open_digits(__import__("pathlib").Path(cache))
print(len(source.train), len(source.val))
"""


def test_two_processes_at_once_make_one_whole_cache(tmp_path, root):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        for _ in range(2)
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    for racer in racers:
        racer.stdin.write(f"{tmp_path}\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=PATIENCE)[0] for racer in racers] == ["1438 359\n"] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits-v2"]


def test_losing_the_race_keeps_the_winner(tmp_path, monkeypatch):
    folder = tmp_path / "digits-v2"

    def slow(target: Path) -> None:
        (target / "mine").touch()
        folder.mkdir()
        (folder / "theirs").touch()

    monkeypatch.setattr(module, "write_digits", slow)
    module._create(folder)
    assert [entry.name for entry in folder.iterdir()] == ["theirs"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits-v2"]


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def broken(target: Path) -> None:
        (target / "one.jpg").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_digits", broken)
    with pytest.raises(DataError, match=r"digits-v2 .*No space left.*HCR_CACHE"):
        open_source("digits", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="HCR_CACHE"):
        open_source("digits", cache=tmp_path / "file")


@pytest.mark.parametrize("victims", ["val/3", "val/3/*.jpg", "train/0/*0.jpg"])
def test_a_damaged_cache_is_named(tmp_path, victims):
    open_source("digits", cache=tmp_path)
    for path in (tmp_path / "digits-v2").glob(victims):
        if path.is_file():
            path.unlink()
        else:
            path.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"digits-v2 .*delete it and it will be made again"):
        open_source("digits", cache=tmp_path)


def test_digits_take_no_root(tmp_path):
    with pytest.raises(DataError, match="take no root"):
        open_source("digits", tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HCR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("HCR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hcr"
    assert cache_folder("~/here") == tmp_path / "here"
