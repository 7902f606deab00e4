"""Datasets of Hugging Face on disk: as saved, as Parquet, as Arrow; skipped where `datasets` is not installed."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from engine.data.sources.found import Wanted
from engine.data.sources.open import open_source
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import DataError

datasets = pytest.importorskip("datasets")

CLASSES = ["dog", "cat"]


def encoded(number: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def made(count: int = 20, names: bool = False, **columns):
    rows = {
        "picture": [{"bytes": encoded(number), "path": f"{number}.png" if names else None} for number in range(count)],
        "label": [number % 2 for number in range(count)],
        **columns,
    }
    features = {"picture": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    features |= {
        name: datasets.Value("string" if isinstance(column[0], str) else "int64") for name, column in columns.items()
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture(params=["saved", "parquet", "arrow"])
def root(request, tmp_path) -> Path:
    """train of 20 and validation of 6 images."""
    parts = {"train": made(20), "validation": made(6)}
    folder = tmp_path / "set"
    if request.param == "saved":
        datasets.DatasetDict(parts).save_to_disk(str(folder))
        return folder
    (folder / "data").mkdir(parents=True)
    for name, part in parts.items():
        if request.param == "parquet":
            part.to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))
        else:
            part.save_to_disk(str(tmp_path / name))
            (arrow,) = (tmp_path / name).glob("*.arrow")
            arrow.rename(folder / "data" / f"{name}-0.arrow")
    return folder


def test_every_kind_is_the_same_source(root):
    source = open_source("folder", root)
    assert source.name == "dataset" and source.classes == CLASSES, "in the dataset's own order"
    assert source.train.labels.tolist() == [0, 1] * 10 and len(source.val) == 6 and source.made is None
    assert [source.val.read(index) for index in range(6)] == [encoded(number) for number in range(6)]
    assert source.train.path(3) == f"{root}:train/000000003.png"
    assert list(source.train.stored.sizes()) == [len(encoded(number)) for number in range(20)]
    part = source.train.take(np.array([7, 2]))
    assert [part.read(0), part.path(1)] == [encoded(7), source.train.path(2)]
    assert pickle.loads(pickle.dumps(part)).read(1) == encoded(2)


def test_one_split_is_held_out_of_and_named_by_its_files(tmp_path):
    made(20, names=True).save_to_disk(str(tmp_path / "one"))
    source = open_source("folder", tmp_path / "one", wanted=Wanted(val_share=0.3))
    assert (len(source.train), len(source.val)) == (14, 6)
    assert all(name.endswith(".png") for name in source.made["val"])
    made(4).to_parquet(str(tmp_path / "one.parquet"))
    assert len(open_source("folder", tmp_path / "one.parquet").val) == 2


def test_a_selection_keeps_its_order(tmp_path):
    made(20).select([9, 4, 6, 3]).save_to_disk(str(tmp_path / "some"))
    source = open_source("folder", tmp_path / "some")
    whole = {source.train.read(0), source.train.read(1), source.val.read(0), source.val.read(1)}
    assert whole == {encoded(number) for number in (9, 4, 6, 3)}


def test_labels_that_are_text_and_groups(tmp_path):
    part = made(20, breed=["pug", "tabby"] * 10, patient_id=[str(number // 4) for number in range(20)])
    part.remove_columns(["label"]).save_to_disk(str(tmp_path / "x"))
    source = open_source("folder", tmp_path / "x")
    assert source.classes == ["pug", "tabby"] and len(source.val) == 4
    assert len({int(Path(path).stem) // 4 for path in source.val.paths}) == 1, "one patient"


def test_a_test_split_without_labels_is_left_out(tmp_path):
    parts = {"train": made(8), "test": made(4).map(lambda row: {"label": -1})}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "x"))
    assert open_source("folder", tmp_path / "x").test is None


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        (
            lambda part: part.map(lambda row, n: {"label": -1 if n == 3 else 0}, with_indices=True),
            "",
            r"row 4: label -1 is out of range: there are 2",
        ),
        (lambda part: part.remove_columns("picture"), "", r"no column holds images \(it has label, other\)"),
        (lambda part: part.remove_columns("label"), "", r"no column is the label \(it has picture, other\)"),
        (
            lambda part: part.add_column("again", part["label"]).cast_column(
                "again", datasets.ClassLabel(names=CLASSES)
            ),
            "",
            r"label and again could each be the label \(it has",
        ),
        (lambda part: part, "label=breed", r"names 'breed' as the label; there are picture, label, other"),
        (lambda part: part, "label=picture", r"column picture is of struct"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, columns, message):
    change(made(8, other=[1] * 8)).save_to_disk(str(tmp_path / "x"))
    with pytest.raises(DataError, match=message):
        open_source("folder", tmp_path / "x", wanted=Wanted(columns=columns))


def test_other_splits_and_damaged_folders_are_refused(tmp_path):
    datasets.DatasetDict({"train": made(4), "unsupervised": made(4)}).save_to_disk(str(tmp_path / "x"))
    with pytest.raises(DataError, match="split 'unsupervised' is none of train, val and test"):
        open_source("folder", tmp_path / "x")
    (arrow,) = (tmp_path / "x" / "train").glob("*.arrow")
    arrow.write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        open_source("folder", tmp_path / "x")


def test_rows_without_an_image(tmp_path):
    rows = [{"bytes": None, "path": None}, {"bytes": None, "path": str(tmp_path / "beside.png")}] * 2
    (tmp_path / "beside.png").write_bytes(encoded(77))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "x").mkdir()
    parquet.write_table(pa.table({"image": pa.array(rows, kind), "label": ["a"] * 4}), tmp_path / "x" / "all.parquet")
    source = open_source("folder", tmp_path / "x")
    both = [source.train, source.val]
    found = []
    for split in both:
        for index in range(len(split)):
            try:
                found.append(split.read(index))
            except Unreadable as error:
                found.append(str(error))
    assert sorted(map(str, found)) == sorted(map(str, [encoded(77), "the row has no image"] * 2))


def test_without_the_package_it_is_said(tmp_path, monkeypatch):
    import sys

    made(4).save_to_disk(str(tmp_path / "x"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        open_source("folder", tmp_path / "x")
