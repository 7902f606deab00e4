"""Which pictures a command line names."""

import io
import os

import pytest

from engine.config import ConfigError
from engine.use.pictures import named_pictures


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
