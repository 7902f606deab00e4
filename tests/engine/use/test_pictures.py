"""Which pictures a command line names."""

import io
import os

import pytest

from engine.config import ConfigError
from engine.use.pictures import named_pictures, passed_over, pictures_of


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.png", "sub/deep/c.JPEG", "sub/film.mp4", ".hidden.jpg", "notes.pdf"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "in"


def test_files_folders_patterns_and_lists_in_the_order_given(folder, tmp_path):
    (tmp_path / "list.txt").write_text("x/1.jpg\n\n  odd name.jpg\r\ny.png")
    given = [f"{folder}/notes.pdf", str(folder), f"{folder}/*.jpg", f"{folder}/**/*.JPEG", str(tmp_path / "list.txt")]
    below = [f"{folder}/{name}" for name in ("a.png", "b.jpg", "sub/deep/c.JPEG")]
    assert named_pictures(given) == [
        f"{folder}/notes.pdf",
        *below,
        f"{folder}/b.jpg",
        f"{folder}/sub/deep/c.JPEG",
        *("x/1.jpg", "  odd name.jpg", "y.png"),
    ]
    assert named_pictures([f"@{tmp_path / 'list.txt'}"])[0] == "x/1.jpg"


def test_a_table_names_its_column(tmp_path):
    (tmp_path / "list.csv").write_text("name,file\nx,a/1.jpg\ny,/2.png\n")
    assert named_pictures([str(tmp_path / "list.csv")]) == [f"{tmp_path}/a/1.jpg", "/2.png"]


def test_paths_on_standard_input():
    assert named_pictures(["-"], io.BytesIO(b"a.jpg\nb\xff.jpg\nlast.png")) == [
        "a.jpg",
        os.fsdecode(b"b\xff.jpg"),
        "last.png",
    ]


def test_standard_input_that_was_never_open(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # as Python has it behind `<&-`
    with pytest.raises(ConfigError, match="-: standard input is closed"):
        named_pictures(["-"])


def test_a_file_that_is_called_like_a_pattern_is_that_file(tmp_path):
    path = tmp_path / "a[1].jpg"
    path.write_bytes(b"x")
    assert named_pictures([str(path)]) == [str(path)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no pictures are named"),
        (["-"], "standard input ended before it named a picture"),
        (["{}/empty"], r"empty holds no pictures \(it is empty"),
        (["{}/in/sub/films"], r"films holds no pictures \(it has 2 files of other kinds"),
        (["{}/in/*.gif"], r"\*\.gif: no file matches"),
        (["{}/none.txt"], "the list cannot be read: No such file"),
        (["{}/blank.txt"], "the list names no pictures"),
    ],
)
def test_what_names_nothing_is_told(folder, tmp_path, given, told):
    (tmp_path / "empty").mkdir()
    (folder / "sub" / "films").mkdir()
    for name in ("a.mp4", "b.pdf"):
        (folder / "sub" / "films" / name).touch()
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match=told):
        named_pictures([each.format(tmp_path) for each in given], io.BytesIO(b"\n"))


def test_what_is_no_picture_is_counted_in_the_one_walk(folder, tmp_path, monkeypatch):
    (folder / "sub" / "films").mkdir()
    (folder / "@eaDir").mkdir()
    for name in ("sub/films/b.mp4", "sub/films/a.MP4", "notes", ".hidden.pdf", "@eaDir/x.pdf"):
        (folder / name).touch()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "c.pdf").touch()
    (folder / "link").symlink_to(tmp_path / "away")
    walked, walk, met = [], os.walk, []
    monkeypatch.setattr(os, "walk", lambda top, **more: walked.append(top) or walk(top, **more))
    found = named_pictures([str(folder), str(folder / "sub")], met=met)
    assert len(found) > len(set(found)), "a folder that is named twice is meant twice"
    assert [one for one in walked if "@eaDir" not in one] == [str(folder), str(folder / "sub")]
    kinds = f"6 .mp4, 2 .pdf, 1 without an ending; such as {folder}/link/c.pdf"
    assert passed_over(met) == f"9 files are no pictures and were passed over ({kinds})"
    assert passed_over([]) is None


def test_shards_alone_are_all_their_pictures(tmp_path):
    import io as bytes_io
    import tarfile

    for place in range(2):
        with tarfile.open(tmp_path / f"part-{place}.tar", "w") as tar:
            for name in ("a.jpg", "b.png"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, bytes_io.BytesIO(b"%d" % place))
    split = pictures_of([str(tmp_path)])
    assert list(split.paths) == [f"{tmp_path}/part-{place}.tar:{name}" for place in "01" for name in ("a.jpg", "b.png")]
    assert [split.read(index) for index in range(4)] == [b"0", b"0", b"1", b"1"]
    assert len(pictures_of([str(tmp_path / "part-1.tar")])) == 2
    with pytest.raises(ConfigError, match="name it alone"):
        pictures_of([str(tmp_path), "x.jpg"])


def test_a_saved_dataset_is_all_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}], "label": [0, 1]}
    part = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict({"train": part, "test": part.select([1])}).save_to_disk(str(tmp_path / "x"))
    split = pictures_of([str(tmp_path / "x")])
    assert [split.read(index) for index in range(3)] == [b"1", b"2", b"2"] and len(split.paths) == 3
