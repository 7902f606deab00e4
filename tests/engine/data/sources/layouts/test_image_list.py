"""Lists of images: columns guessed and said, labels by name or number, bad rows named by their line."""

import json
import logging
from pathlib import Path

import pytest

from engine.data.sources.found import Wanted, source_to_evaluate
from engine.data.sources.layouts.image_list import listed_paths, read_list
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError

ROWS = [
    ("a/1.jpg", "dog", "train"),
    ("a/2.jpg", "cat", "train"),
    ("b/3.JPG", "cat", "valid"),
    ("b/4.png", "dog", "test"),
]


def write(path: Path, rows=ROWS, heads=("path", "label", "split")) -> Path:
    kind = path.suffix
    if kind in (".csv", ".tsv"):
        mark = "\t" if kind == ".tsv" else ","
        path.write_text("\n".join(mark.join(map(str, row)) for row in (heads, *rows)) + "\n")
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(heads, row, strict=True))) + "\n" for row in rows))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names=list(heads)), path)
    return path


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO, "hcr")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("heads", [("path", "label", "split"), ("File Name", "class_id", "Subset")])
def test_every_kind_is_the_same_source(tmp_path, caplog, kind, heads):
    source = open_source("folder", write(tmp_path / f"list.{kind}", heads=heads))
    assert source.classes == ["cat", "dog"] and source.train.labels.tolist() == [1, 0]
    assert list(source.train.paths) == [str(tmp_path / "a/1.jpg"), str(tmp_path / "a/2.jpg")]
    assert source.val.path(0) == str(tmp_path / "b/3.JPG") and source.test.labels.tolist() == [1]
    assert f"path from {heads[0]!r}, label from {heads[1]!r}, split from {heads[2]!r}" in caplog.text
    assert "valid chooses the weights (1)" in caplog.text and "paths are relative to the list" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_by_number_are_in_their_order(tmp_path, kind):
    rows = [(f"{number}.jpg", number % 12) for number in range(60)]
    source = open_source("folder", write(tmp_path / f"list.{kind}", rows, ("image", "target")))
    assert source.classes == [str(number) for number in range(12)]
    assert sorted(source.val.labels.tolist()) == list(range(12)), "one of five of each class is held out"
    assert sorted(source.made["val"]) == sorted(Path(path).name for path in source.val.paths)


def test_names_that_look_like_numbers_stay_names(tmp_path):
    found = read_list(write(tmp_path / "l.csv", [("1.jpg", "007"), ("2.jpg", "7"), ("3.jpg", "10")], ("path", "label")))
    assert found.classes == ["007", "10", "7"]


def test_a_list_without_a_head(tmp_path):
    (tmp_path / "train.csv").write_text("x/1.jpg;3\nx/2.jpg;4\n")
    found = read_list(tmp_path / "train.csv")
    assert found.classes == ["3", "4"] and len(found.splits["train"]) == 2


def test_absolute_paths_stay(tmp_path):
    found = read_list(write(tmp_path / "l.csv", [("/data/1.jpg", "a"), ("2.jpg", "b")], ("path", "label")))
    assert list(found.splits["train"].paths) == ["/data/1.jpg", str(tmp_path / "2.jpg")]


def test_groups_of_a_column_stay_together(tmp_path):
    rows = [(f"{p}-{n}.jpg", "ab"[p % 2], f"patient {p}") for p in range(20) for n in range(3)]
    source = open_source("folder", write(tmp_path / "l.csv", rows, ("path", "label", "patient_id")))
    sides = [{Path(path).name.split("-")[0] for path in split.paths} for split in (source.train, source.val)]
    assert not sides[0] & sides[1] and len(sides[1]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.jpg,cat\nb.jpg\n", r"l\.csv, line 3: 1 columns where the first line has 2: b\.jpg"),
        ("path,label\na.jpg,cat\n\nb.jpg,\n", r"l\.csv, line 4: no label in column 'label'"),
        ("path,label\na.jpg,cat\n,dog\n", r"l\.csv, line 3: no path in column 'path'"),
        ("path,label\na.jpg,1\nb.jpg,-1\n", r"l\.csv, line 3: label in column 'label' is -1; numbers of classes count"),
        ("path,label,split\na.jpg,1,train\nb.jpg,2,holdout\n", r"line 3: split 'holdout' in column 'split'"),
        (
            "path,label,class\na.jpg,1,x\n",
            r"label and class could each be the label; name it: --data.columns label=",
        ),
        ("path,colour,size\na.jpg,1,x\n", r"may be any of colour, size; name it: --data.columns label=colour"),
        ("one,two\nx,1\n", r"no column is the path \(it has one, two\); name it: --data.columns path=COLUMN"),
        ("path,path\na,b\n", r"line 1: two columns have one name"),
        ("", r"l\.csv is empty"),
        ("path,label\n", r"has no rows"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,val\n", r"val has classes that train lacks: y; every class needs"),
        (
            "path,label,split,group\na.jpg,x,train,g1\nb.jpg,x,val,g2\nc.jpg,x,val,g1\n",
            r"group g1 is on both sides: .*a\.jpg in train, .*c\.jpg in val",
        ),
        ("path,label\n" + "".join(f"{n}.jpg,id{n}\n" for n in range(200)), r"200 different values in 200 rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source("folder", tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.jpg", "label": "x"}\n\n{"path": "b.jpg", "label"\n', r"l\.jsonl, line 3: "),
        ('{"path": "a.jpg", "label": "x"}\n{"path": "b.jpg", "label": 3}\n', r"l\.jsonl, line 2: "),
        ('{"path": "a.jpg", "label": "x"}\n{"path": "b.jpg"}\n', r"l\.jsonl, line 2: no label"),
        ('{"path": "a.jpg", "label": 1.5}\n', r"column label has fractions"),
        ('{"path": "a.jpg", "label": ["x"]}\n', r"column label is of list"),
    ],
)
def test_a_bad_line_of_json(tmp_path, text, message):
    (tmp_path / "l.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source("folder", tmp_path / "l.jsonl")


def test_other_files_are_no_lists(tmp_path):
    (tmp_path / "l.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"l\.parquet cannot be read as PARQUET"):
        open_source("folder", tmp_path / "l.parquet")
    (tmp_path / "l.xlsx").touch()
    with pytest.raises(DataError, match=r"neither a folder nor a list \(\.csv"):
        open_source("folder", tmp_path / "l.xlsx")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("label=kind", None),
        ("label=nothing", r"names 'nothing' as the label; there are path, label, kind"),
        ("breed=kind", r"'breed=kind' is not ROLE=COLUMN with one of path, label, split, group"),
    ],
)
def test_columns_that_are_told(tmp_path, columns, message):
    path = write(tmp_path / "l.csv", [("1.jpg", "x", "a"), ("2.jpg", "y", "a")], ("path", "label", "kind"))
    wanted = Wanted(columns=columns)
    if message is None:
        assert open_source("folder", path, wanted=wanted).classes == ["a"]
        return
    with pytest.raises(DataError, match=message):
        open_source("folder", path, wanted=wanted)


def test_evaluating_on_numbers_of_known_classes(tmp_path):
    path = write(tmp_path / "l.csv", [("1.jpg", 2), ("2.jpg", 0)], ("path", "label"))
    source = source_to_evaluate(read_list(path), ["bird", "cat", "dog"])
    assert source.val.labels.tolist() == [2, 0] and source.classes == ["bird", "cat", "dog"]
    with pytest.raises(DataError, match="has label 2, and the weights know 2 classes, from 0"):
        source_to_evaluate(read_list(path), ["bird", "cat"])


def test_paths_alone_are_enough_to_predict(tmp_path):
    path = write(tmp_path / "l.csv", [("1.jpg", 2.5), ("2.jpg", 0)], ("file", "score"))
    assert listed_paths(path) == [str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg")]
