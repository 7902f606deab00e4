"""A set with everything wrong in it: what is found, what a quick look finds, and what is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.doctor.examine import examine, glance, keep, kept
from engine.data.doctor.findings import Findings
from engine.data.fingerprint import fingerprint_of
from engine.data.sources.open import open_source
from engine.data.sources.source import Source, Split


@pytest.fixture
def ill(tmp_path, photo) -> Path:
    """Two classes; a leak byte for byte, a resized leak, a picture with two labels, three unreadable files."""
    for split, count, begin in (("train", 8, 0), ("val", 4, 100)):
        for place, name in enumerate(("cat", "dog")):
            for number in range(count):
                target = tmp_path / split / name / f"{number}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                photo(begin + 50 * place + number).save(target)
    shutil.copy(tmp_path / "train/cat/0.jpg", tmp_path / "val/cat/leak.jpg")
    with Image.open(tmp_path / "train/dog/1.jpg") as image:
        image.resize((60, 45)).save(tmp_path / "val/dog/resized.jpg")
    shutil.copy(tmp_path / "train/cat/2.jpg", tmp_path / "train/dog/two-labels.jpg")
    (tmp_path / "train/cat/empty.jpg").write_bytes(b"")
    (tmp_path / "train/cat/text.png").write_bytes(b"no picture at all")
    whole = (tmp_path / "train/cat/3.jpg").read_bytes()
    (tmp_path / "train/dog/cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((40, 30), 30000, np.uint16)).save(tmp_path / "val/cat/grey16.png")
    return tmp_path


def names(groups):
    return sorted(sorted("/".join(Path(one.name).parts[-3:]) for one in group.members) for group in groups)


def test_everything_that_is_wrong_is_found(ill):
    found = examine(open_source("folder", ill))
    assert found.whole and found.counts == {"train": [10, 10], "val": [6, 5]}
    assert names(found.chosen("exact")) == [
        ["train/cat/0.jpg", "val/cat/leak.jpg"],
        ["train/cat/2.jpg", "train/dog/two-labels.jpg"],
    ]
    assert names(found.chosen("near")) == [["train/dog/1.jpg", "val/dog/resized.jpg"]]
    assert names(found.chosen("leaks")) == [
        ["train/cat/0.jpg", "val/cat/leak.jpg"],
        ["train/dog/1.jpg", "val/dog/resized.jpg"],
    ]
    assert names(found.chosen("contradictory")) == [["train/cat/2.jpg", "train/dog/two-labels.jpg"]]
    reasons = {Path(name).name: why for _, name, why in found.unreadable}
    assert set(reasons) == {"empty.jpg", "text.png", "cut.jpg"}
    assert reasons["empty.jpg"] == "the file is empty" and "truncated" in reasons["cut.jpg"]
    assert found.sizes["smallest"] == [30, 40] and found.sizes["largest"] == [120, 90]
    assert found.modes["RGB"] == 27 and found.modes["I;16"] == 1 and found.formats == {"JPEG": 27, "PNG": 1}


def test_a_quick_look_finds_copies_by_their_size(ill):
    found = glance(open_source("folder", ill))
    assert not found.near and not found.whole
    assert names(found.chosen("leaks")) == [["train/cat/0.jpg", "val/cat/leak.jpg"]]
    assert {Path(name).name for _, name, _ in found.unreadable} >= {"empty.jpg", "text.png", "cut.jpg"}


def test_copies_of_copies_are_one_group(ill):
    shutil.copy(ill / "val/dog/resized.jpg", ill / "val/dog/again.jpg")
    found = examine(open_source("folder", ill))
    assert ["train/dog/1.jpg", "val/dog/again.jpg", "val/dog/resized.jpg"] in names(found.chosen("near"))
    assert ["val/dog/again.jpg", "val/dog/resized.jpg"] in names(found.chosen("exact"))


def test_findings_are_kept_until_the_data_changes(ill):
    source = open_source("folder", ill)
    data = fingerprint_of(source)
    assert kept(source, data) is None
    found = examine(source)
    keep(source, data, found)
    again = kept(source, data)
    assert again == found
    assert Findings.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    (ill / "val/cat/leak.jpg").unlink()
    changed = open_source("folder", ill)
    assert kept(changed, fingerprint_of(changed)) is None


def test_images_that_are_no_files():
    arrays = np.random.default_rng(0).integers(0, 256, (6, 12, 12), dtype=np.uint8)
    train = Split(np.array([0, 1, 0, 1]), arrays=np.concatenate([arrays[:3], arrays[:1]]))
    val = Split(np.array([0, 1]), arrays=arrays[2:4])
    source = Source("made", ["a", "b"], train, val, (0.5,) * 3, (0.2,) * 3, False, (0.5, 1.0), 1.0)
    for found in (examine(source), glance(source)):
        assert [[one.name for one in group.members] for group in found.chosen("leaks")] == [["number 2", "number 0"]]
        assert len(found.chosen("contradictory")) == 1


def test_nothing_readable(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.jpg").write_bytes(split.encode())
    found = examine(open_source("folder", tmp_path))
    assert len(found.unreadable) == 2 and found.sizes == {} and found.groups == []
    none = replace(open_source("folder", tmp_path), val=Split(np.zeros(0, np.int64), []))
    assert set(examine(none).counts) == {"train"}
