"""Which folders are splits, what each is used for, and what is held out where there is no val."""

import logging
from pathlib import Path

import pytest

from engine.data.sources.found import Wanted
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO, "hcr")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(split) -> list[str]:
    return ["/".join(Path(path).parts[-2:]) for path in split.paths]


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "VALID"])
def test_names_that_people_give(tmp_path, caplog, train, val):
    touch(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{val}/a/2.jpg", "test/b/3.jpg")
    source = open_source("folder", tmp_path)
    assert names(source.train) == ["a/1.jpg", "b/1.jpg"]
    assert names(source.val) == ["a/2.jpg"] and names(source.test) == ["b/3.jpg"] and source.test.labels.tolist() == [1]
    assert f"{train}/ trains (2), {val}/ chooses the weights (1), test/ is evaluated once at the end (1)" in caplog.text
    assert source.made is None


@pytest.mark.parametrize("others", [["test/a/9.jpg"], []], ids=["test alone", "train alone"])
def test_without_val_a_share_of_train_is_held_out_and_test_chooses_nothing(tmp_path, caplog, others):
    touch(tmp_path, *[f"train/{name}/{number}.jpg" for name in "ab" for number in range(10)], *others)
    source = open_source("folder", tmp_path, wanted=Wanted(val_share=0.3))
    assert len(source.val) == 6 and source.val.labels.tolist() == [0] * 3 + [1] * 3
    assert (source.test is not None) == bool(others)
    assert "6 of 20 images (--data.val-share 0.3) are held out as val" in caplog.text
    assert sorted(source.made["val"]) == sorted(f"train/{name}" for name in names(source.val))


def test_one_folder_of_class_folders(tmp_path, caplog):
    touch(tmp_path, *[f"{name}/{number}.JPG" for name in ("cat/deep/er", "dog", "test") for number in range(5)])
    touch(tmp_path, ".DS_Store", "__MACOSX/cat/1.jpg", ".ipynb_checkpoints/1.jpg", "cat/Thumbs.db", "cat/.1.jpg")
    source = open_source("folder", tmp_path)
    assert source.classes == ["cat", "dog", "test"], "a class may be called so where no split is"
    assert (len(source.train), len(source.val)) == (12, 3)
    assert not set(source.train.paths) & set(source.val.paths)
    assert source.train.paths == sorted(source.train.paths)
    again = open_source("folder", tmp_path, wanted=Wanted(split_seed=5))
    assert names(again.val) != names(source.val)


def test_what_a_run_wrote_down_is_kept_when_images_come_and_go(tmp_path, caplog):
    from engine.data.sources.holdout import Holdout

    touch(tmp_path, *[f"{name}/{number}.jpg" for name in "ab" for number in range(10)])
    before = open_source("folder", tmp_path)
    recorded = Holdout(**before.made)
    touch(tmp_path, *[f"a/{number}.jpg" for number in range(10, 40)])
    Path(before.val.paths[0]).unlink()
    after = open_source("folder", tmp_path, wanted=Wanted(recorded=recorded))
    assert after.val.paths == before.val.paths[1:] and len(after.train) == 46
    assert "1 of the 4 images that the run held out for val are gone" in caplog.text
    assert after.made == before.made


def test_groups_of_paths_are_on_one_side(tmp_path):
    touch(tmp_path, *[f"{'ab'[p % 2]}/patient{p:02}_{number}.jpg" for p in range(20) for number in range(3)])
    source = open_source("folder", tmp_path, wanted=Wanted(group_by=r"patient(\d+)"))
    sides = [{path.split("patient")[1][:2] for path in split.paths} for split in (source.train, source.val)]
    assert not sides[0] & sides[1] and len(sides[1]) == 4


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        (["train/a/p1.jpg", "val/a/p1.jpg"], {"group_by": r"p\d"}, r"group p1 is on both sides: .*train.* in train"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], {}, r"two folders for val"),
        (["train/a/1.jpg", "val/b/1.jpg"], {}, r"val/ has classes that train/ lacks: b; every class needs training"),
        (["train/a/1.jpg", "test/b/1.jpg", "val/a/1.jpg"], {}, r"test/ has classes that train/ lacks: b"),
        (["a/p1.jpg", "a/p2.jpg", "b/p1.jpg"], {"group_by": "nothing"}, r"the pattern nothing does not match"),
        (["a/p1.jpg", "b/p1.jpg"], {"group_by": r"p\d"}, r"no group can be held out"),
        (["a/1.jpg", "b/1.jpg"], {}, r"no image can be held out"),
        (
            ["set/train/a/1.jpg", "set/val/a/1.jpg"],
            {},
            r"set/ alone, which has train/; name it: --data.root .*set",
        ),
        (["1.jpg", "2.jpg"], {}, r"2 images and no class folders"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, made, wanted, message):
    with pytest.raises(DataError, match=message):
        open_source("folder", touch(tmp_path, *made), wanted=Wanted(**wanted))
