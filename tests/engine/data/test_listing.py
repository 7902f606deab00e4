"""What a folder of pictures holds besides pictures: cycles of links, copies in hidden folders, other formats."""

import logging
import os
from pathlib import Path

import pytest

from engine.data.sources import listing
from engine.data.sources.folder import read_folder
from engine.data.sources.found import source_to_evaluate
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError, Source


def evaluated(root: Path, classes: list[str] | None) -> Source:
    return source_to_evaluate(read_folder(root), classes)


@pytest.fixture
def pictures(tmp_path, caplog) -> Path:
    """Two classes, three files each in train/, one each in val/."""
    caplog.set_level(logging.INFO, "hcr")
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / split / name / f"{number}.jpg").touch()
    return tmp_path


LINKS = {
    "to itself": [("train/cat/a", ".")],
    "twice to itself": [("train/cat/a", "."), ("train/cat/b", ".")],
    "upwards": [("train/cat/a", "..")],
    "to the root": [("train/cat/a", "../..")],
    "to the other class": [("train/cat/a", "../dog")],
    "in a circle": [("train/cat/a", "../dog"), ("train/dog/a", "../cat")],
    "broken": [("train/cat/a", "nowhere")],
    "to a file that is listed": [],
}


@pytest.mark.parametrize("kind", LINKS)
def test_each_folder_is_listed_once(pictures, kind, caplog):
    """W8."""
    for link, target in LINKS[kind]:
        (pictures / link).symlink_to(target)
    source = open_source("folder", pictures)
    assert len(source.train) == 6 and source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    followed = LINKS[kind] and kind != "broken"
    assert bool(followed) == ("links to folders that are listed already" in caplog.text)


def test_a_link_to_pictures_elsewhere_is_followed_once(pictures, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "9.jpg").touch()
    for name in ("a", "b"):
        (pictures / "train" / "cat" / name).symlink_to(elsewhere)
    assert len(open_source("folder", pictures).train) == 7
    (pictures / "train" / "bird").symlink_to(elsewhere)  # a whole class by a link
    assert open_source("folder", pictures).classes == ["bird", "cat", "dog"]
    assert open_source("folder", pictures).train.labels.tolist() == [0, 1, 1, 1, 2, 2, 2]


def test_two_classes_that_are_one_folder_are_refused(pictures):
    (pictures / "train" / "kitten").symlink_to("cat")
    with pytest.raises(DataError, match="train/kitten is a link to another class's folder"):
        open_source("folder", pictures)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", ".git", "lost+found"])
def test_hidden_and_system_folders_are_left_out_and_counted(pictures, name, caplog):
    """W9."""
    for place in (pictures / "train" / "cat" / name / "deeper", pictures / "train" / name):
        place.mkdir(parents=True)
        (place / "copy.jpg").touch()
    source = open_source("folder", pictures)
    assert len(source.train) == 6 and source.classes == ["cat", "dog"]
    assert "1 images in hidden or system folders" in caplog.text and name in caplog.text


def test_formats_that_are_not_read_are_counted(pictures, caplog, monkeypatch):
    for name in ("a.heic", "b.HEIC", "c.jp2", "d.gif", "e.jfif", "f.avif", "notes.txt"):
        (pictures / "train" / "cat" / name).touch()
    assert len(open_source("folder", pictures).train) == 9
    assert "not read (2 .heic, 1 .jp2)" in caplog.text and "1 .gif files: of each the first" in caplog.text
    monkeypatch.setattr(listing, "readable_extensions", lambda: (".jpg",))
    caplog.clear()
    assert len(open_source("folder", pictures).train) == 6
    assert "1 .avif, 1 .gif, 2 .heic, 1 .jfif, 1 .jp2" in caplog.text


def test_a_class_of_only_such_formats_says_which(pictures):
    (pictures / "train" / "cow").mkdir()
    (pictures / "train" / "cow" / "1.heic").touch()
    with pytest.raises(DataError, match=r"cow holds no images .*there are 1 \.heic, which are not read"):
        open_source("folder", pictures)


def test_one_class_is_said(pictures, caplog):
    for split in ("train", "val"):
        for path in (pictures / split / "dog").iterdir():
            path.unlink()
        (pictures / split / "dog").rmdir()
    assert open_source("folder", pictures).classes == ["cat"]
    assert "has one class (cat)" in caplog.text


def test_names_that_look_alike_are_spelt_out(pictures):
    (pictures / "train" / "caf\u00e9").mkdir()
    (pictures / "val" / "cafe\u0301").mkdir()
    for folder in (pictures / "train" / "caf\u00e9", pictures / "val" / "cafe\u0301"):
        (folder / "1.jpg").touch()
    with pytest.raises(DataError, match=r"lacks: 'cafe\\u0301'"):
        open_source("folder", pictures)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="file names are any bytes on Linux")
def test_names_that_are_no_text(pictures):
    name = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        (pictures / split / name).mkdir()
        (pictures / split / name / os.fsdecode(b"\xff.jpg")).touch()
    assert (
        open_source("folder", pictures).classes == [name, "cat", "dog"]
        or name in open_source("folder", pictures).classes
    )


@pytest.mark.parametrize("layout", ["whole", "val alone", "class folders"])
def test_what_can_be_evaluated_on(pictures, layout):
    classes = ["bird", "cat", "dog"]
    if layout == "whole":
        classes = ["cat", "dog"]
    else:
        (pictures / "train").rename(pictures.with_name("aside" + pictures.name))
    root = pictures / "val" if layout == "class folders" else pictures
    source = evaluated(root, classes)
    assert source.classes == classes and [classes[label] for label in source.val.labels] == ["cat", "dog"]
    assert evaluated(root, None).classes == ["cat", "dog"]


def test_evaluating_on_classes_that_the_weights_lack_is_refused(pictures):
    with pytest.raises(DataError, match=r"classes that the weights lack: dog; they know bird, cat"):
        evaluated(pictures / "val", ["bird", "cat"])
