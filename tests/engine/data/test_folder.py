"""Listing a folder of class folders, and what is said when it is not one."""

from pathlib import Path

import pytest

from engine.data.sources.open import open_source
from engine.data.sources.source import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_classes_are_sorted_and_shared_by_both_splits(tmp_path):
    touch(tmp_path, "train/b/2.jpg", "train/b/1.PNG", "train/a/x.jpeg", "train/c/deep/er/y.WebP", "val/c/z.tif")
    source = open_source("folder", tmp_path)
    assert source.classes == ["a", "b", "c"]
    assert source.train.labels.tolist() == [0, 1, 1, 2]
    assert [Path(path).name for path in source.train.paths] == ["x.jpeg", "1.PNG", "2.jpg", "y.WebP"]
    assert source.val.labels.tolist() == [2]
    assert source.flip and source.crop_scale == (0.08, 1.0) and source.eval_crop == 0.875


def test_other_files_and_hidden_ones_are_left_out(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/a/notes.txt", "train/a/._1.jpg", "train/.cache/x.jpg", "train/README.md")
    touch(tmp_path, "val/a/1.bmp")
    source = open_source("folder", str(tmp_path))
    assert source.classes == ["a"] and len(source.train) == 1


def test_auto_is_a_folder_where_a_root_is_given(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg")
    assert open_source("auto", tmp_path).name == "folder"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val/a/1.jpg", "test/a/1.jpg"], r"has no split train/ \(it has test/, val/\)"),
        (["train/1.jpg", "val/a/1.jpg"], r"train has no class folders; expected .*train/cat/001.jpg"),
        (["train/a/1.jpg", "train/b/readme.txt", "val/a/1.jpg"], r"class folder .*train/b holds no images .*\.webp"),
        (["train/a/1.jpg", "val/a/readme.txt"], r"class folder .*val/a holds no images"),
        (
            ["train/a/1.jpg", "val/a/1.jpg", "val/dog/1.jpg", "val/cat/1.jpg"],
            r"val/ has classes that train/ lacks: cat, dog",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, names, message):
    with pytest.raises(DataError, match=message) as caught:
        open_source("folder", touch(tmp_path, *names))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--data.root .*nowhere: no such file or folder; expected images in class"):
        open_source("folder", tmp_path / "nowhere")


def test_folder_without_a_root(tmp_path):
    with pytest.raises(DataError, match=r"needs --data\.root"):
        open_source("folder")


def test_a_split_without_folders(tmp_path):
    with pytest.raises(DataError, match="holds no images; expected train/ and val/"):
        open_source("folder", touch(tmp_path, "readme.txt"))


def test_an_unknown_source_names_those_there_are():
    with pytest.raises(DataError, match=r"'imagenet'; there are digits, mnist, cifar10, folder"):
        open_source("imagenet")


def test_real_photographs(unpacked):
    source = open_source("folder", unpacked("flowers"))
    assert source.classes == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert (len(source.train), len(source.val)) == (400, 150)
