"""Shards: the same images under the same names, read by others, found again, gone on with; what is wrong is refused."""

import errno
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.fingerprint import fingerprint_of
from engine.data.shards import write
from engine.data.shards.check import wrong_shards
from engine.data.shards.index import index_path, scanned
from engine.data.shards.names import members_of, name_of
from engine.data.shards.read import MANIFEST, read_shards
from engine.data.shards.unpack import unpack
from engine.data.shards.write import JOURNAL, make_shards
from engine.data.sources.open import open_source
from engine.data.sources.reading import Unreachable
from engine.data.sources.source import DataError


def nothing(*_) -> None:
    pass


def wrong(root: Path) -> list[str]:
    return list(wrong_shards(root, 2, nothing, nothing))


def archive(path: Path, *members: tuple[str, bytes], kind: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_shards_are_the_source(photos, shards):
    files, tars = open_source("folder", photos), open_source("folder", shards)
    assert tars.classes == files.classes and len(list(shards.glob("train-*.tar"))) > 2
    for name in ("train", "val", "test"):
        one, other = files.split(name), tars.split(name)
        assert (one.labels == other.labels).all()
        assert [one.read(index) for index in range(len(one))] == [other.read(index) for index in range(len(other))]
    assert fingerprint_of(tars) == fingerprint_of(files)
    assert tars.train.path(0) == f"{shards}/train-000000.tar:cat/1.jpg"
    assert wrong(shards) == []


def test_what_is_unpacked_is_what_was_packed_and_goes_on(photos, shards, tmp_path):
    output = tmp_path / "unpacked"
    assert unpack(read_shards(shards), output, 2) == 0
    assert everything(output) == everything(photos)
    (output / "train" / "cat" / "1.jpg").unlink()
    (output / "train" / "cat" / "2.PNG").write_bytes(b"half")
    assert unpack(read_shards(shards), output, 2) == 20
    assert everything(output) == everything(photos)


def test_other_readers_find_pairs_of_image_and_class(shards):
    """As WebDataset groups: what stands before the first dot of a file's name is the key."""
    keys: dict[str, set[str]] = {}
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                key, _, ending = file.partition(".")
                keys.setdefault(f"{path.name}/{folder}/{key}", set()).add(ending.lower())
    assert len(keys) == 22 and all("cls" in endings and len(endings) == 2 for endings in keys.values())


def test_the_same_source_makes_the_same_bytes(photos, shards, tmp_path):
    again = tmp_path / "again"
    make_shards(open_source("folder", photos), again, 8_000, 1)
    for path in shards.glob("*.tar"):
        assert path.read_bytes() == (again / path.name).read_bytes()


ENDINGS = [".jpg", ".png", "", ".JPG"]


@given(st.lists(st.text(st.sampled_from("ab./%é1"), min_size=1, max_size=8), max_size=12, unique=True))
def test_names_come_back(stems):
    names = [f"x/{stem.strip('/')}{ending}" for stem, ending in zip(stems, ENDINGS * 3, strict=False)]
    names = [name for name in dict.fromkeys(names) if "//" not in name and not name.endswith("/")]
    members = members_of(names)
    assert [name_of(member) for member in members] == names
    keys = [member[: member.index(".", member.rfind("/") + 1)] for member in members]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("grouped", ["cls", "json", "folders"])
def test_shards_of_others(tmp_path, grouped):
    members = []
    for number in range(20):
        name = f"{'ab'[number % 2]}/{number:03d}" if grouped == "folders" else f"{number:03d}"
        members.append((f"{name}.jpg", b"\xff\xd8%d" % number))
        if grouped == "cls":
            members.append((f"{name}.cls", b"%d" % (number % 2)))
        if grouped == "json":
            members.append((f"{name}.json", json.dumps({"label": "ab"[number % 2], "width": 3}).encode()))
    archive(tmp_path / "x" / "set-train-000.tar", *members)
    archive(tmp_path / "x" / "set-validation-000.tar", *members[:4])
    source = open_source("folder", tmp_path / "x")
    assert source.classes == (["0", "1"] if grouped == "cls" else ["a", "b"])
    assert len(source.train) == 20 and source.val.read(1) == b"\xff\xd81"
    assert source.train.labels.tolist()[:2] == [0, 1]


def test_one_tar_is_split_by_seed(tmp_path):
    tar = archive(tmp_path / "all.tar", *[(f"{'ab'[n % 2]}/{n}.jpg", b"%d" % n) for n in range(20)])
    source = open_source("folder", tar)
    assert (len(source.train), len(source.val)) == (16, 4) and source.made["val"][0].startswith("all.tar/")


def test_an_archive_beside_its_images_makes_no_shards(photos, shards):
    shutil.copy(shards / "train-000000.tar", photos / "train.tar")
    (photos / "download.tar.gz").touch()
    assert open_source("folder", photos).name == "folder"
    for path in [*photos.glob("t*"), photos / "val"]:
        shutil.rmtree(path) if path.is_dir() and path.name != "train" else None
    assert open_source("folder", photos).name == "folder"
    shutil.rmtree(photos / "train")
    assert open_source("folder", photos).name == "shards"


def test_an_index_of_another_or_an_older_shard_is_made_again(shards, photos, caplog):
    caplog.set_level("INFO", "hcr")
    tar = shards / "train-000000.tar"
    before = scanned(tar)
    index_path(tar).unlink()
    assert open_source("folder", shards).train.path(0).endswith(":cat/1.jpg") and index_path(tar).is_file()
    os.utime(tar, ns=(2**62, 2**62))
    open_source("folder", shards)
    assert "train-000000.tar.index is older than" in caplog.text
    (shards / MANIFEST).unlink()
    shutil.copy(shards / "val-000000.tar", tar)  # another shard under its name
    os.utime(tar, ns=(0, 0))
    found = open_source("folder", shards)
    assert len(found.train) != len(before) and found.train.read(0) == found.val.read(0)
    index_path(tar).write_bytes(b"no archive")
    open_source("folder", shards)
    assert "train-000000.tar.index cannot be read" in caplog.text


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_cut_shard_is_refused(shards, share, manifest):
    tar = shards / "train-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[: int(len(data) * share)])
    if not manifest:
        (shards / MANIFEST).unlink()
        if share == 0.999:  # the images are whole, and only the mark at the end is cut
            assert len(open_source("folder", shards).train) == 16
            return
    with pytest.raises(DataError, match=r"train-000001\.tar is cut: it has \d+ bytes"):
        open_source("folder", shards)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../evil.jpg", b"x")], r"member '\.\./evil\.jpg' leads out of the folder"),
        ([("a/../../evil.jpg", b"x")], r"leads out of the folder"),
        ([("/etc/evil.jpg", b"x")], r"leads out of the folder"),
        ([("a/1.jpg", b"x"), ("a/1.jpg", b"y")], r"t\.tar: 'a/1\.jpg' is there twice"),
        ([("1.jpg", b"x"), ("1.cls", b"0"), ("1.png", b"y")], r"key '1' has two images, 1\.jpg and 1\.png"),
        ([("1.jpg", b"x"), ("1.cls", b"0"), ("1.cls", b"1")], r"key '1' is there twice \(1\.cls\)"),
        ([("1.jpg", b"x"), ("1.cls", b"")], r"1\.cls is empty; expected a class"),
        ([("1.jpg", b"x"), ("2.jpg", b"y"), ("1.cls", b"0")], r"t\.tar, 2\.jpg: no label"),
        ([("1.jpg", b"x"), ("1.json", b'{"label": 1, "class": 2}')], r"label and class could each be the label"),
        ([("1.jpg", b"x"), ("1.json", b"{")], r"1\.json is no JSON"),
        ([("1.jpg", b"x"), ("1.cls", b"-3")], r"t\.tar, 1\.jpg: label is -3; numbers of classes count from 0"),
        ([("notes.txt", b"x")], r"holds no images"),
    ],
)
def test_what_a_shard_may_not_have(tmp_path, members, message):
    archive(tmp_path / "t.tar", *members)
    with pytest.raises(DataError, match=message):
        open_source("folder", tmp_path / "t.tar")


def test_links_and_compressed_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        info = tarfile.TarInfo("a/1.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="is a link; such an archive is not read"):
        open_source("folder", tmp_path / "l.tar")
    archive(tmp_path / "z" / "t.tar", ("a/1.jpg", b"x"), kind="w:gz")
    with pytest.raises(DataError, match="is a compressed archive"):
        open_source("folder", tmp_path / "z" / "t.tar")
    (tmp_path / "z" / "t.tar").rename(tmp_path / "z" / "t.tar.gz")
    with pytest.raises(DataError, match=r"holds t\.tar\.gz: unpack it"):
        open_source("folder", tmp_path / "z")


def test_labels_that_the_manifest_lacks_are_out_of_range(shards):
    about = json.loads((shards / MANIFEST).read_text())
    about["classes"] = ["cat"]
    (shards / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(
        DataError, match=r"test-\d+\.tar, dog/.*: label 1 is out of range: shards\.json names 1 classes"
    ):
        open_source("folder", shards)


def test_missing_and_strange_shards_are_named(shards):
    (shards / "train-000001.tar").rename(shards / "train-0000001.tar")
    with pytest.raises(DataError, match=r"train-000001\.tar is missing, which shards\.json names"):
        open_source("folder", shards)
    assert [line.split("/")[-1] for line in wrong(shards)] == [
        "train-000001.tar is missing",
        "train-0000001.tar is not in shards.json",
    ]


def test_a_damaged_header_is_not_taken_for_the_end(shards):
    tar = shards / "train-000000.tar"
    data, start = bytearray(tar.read_bytes()), int(scanned(tar).offsets[1]) - 512
    data[start : start + 512] = b"x" * 512
    tar.write_bytes(data)
    index_path(tar).unlink()
    with pytest.raises(DataError, match=rf"train-000000\.tar is damaged: .* no member at byte {start}"):
        open_source("folder", shards)


def test_a_flipped_bit_is_found(shards):
    tar = shards / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    kept = tar.stat()
    tar.write_bytes(data)
    os.utime(tar, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert wrong(shards) == [f"{tar} has other bytes than shards.json says"]


def test_a_shard_that_is_cut_in_mid_epoch_is_said(shards):
    split = open_source("folder", shards).train
    assert split.read(0)
    for path in shards.glob("*.tar"):
        os.truncate(path, 600)
    with pytest.raises(Unreachable, match="ends before it: it was cut"):
        split.read(0)
    other = pickle.loads(pickle.dumps(split))
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(Unreachable, match=r"train-000000\.tar: No such file"):
        other.read(0)


def test_many_shards_are_opened_one_at_a_time(shards, monkeypatch):
    from engine.data.shards import read

    whole = open_source("folder", shards).train
    expected = [whole.read(index) for index in range(len(whole))]
    monkeypatch.setattr(read, "MOST_OPEN", 1)
    few = open_source("folder", shards).train
    assert [few.read(index) for index in range(len(few))] == expected and not few.stored._open


class Full:
    """A disk that takes so many shards and then is full."""

    def __init__(self, shards: int) -> None:
        self.left, self.make = shards, write._make

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            temporary = arguments[3] / ".x.tar.1.tmp"
            try:
                temporary.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                temporary.unlink()
        return self.make(*arguments)


def test_a_full_disk_says_what_is_needed_and_the_rest_goes_on(photos, shards, tmp_path, monkeypatch):
    output, source = tmp_path / "other", open_source("folder", photos)
    monkeypatch.setattr(write, "_make", Full(2))
    with pytest.raises(OSError, match=r"the shards that are left need [\d,]+ bytes"):
        make_shards(source, output, 8_000, 1)
    assert len(list(output.glob("*.tar"))) == 2 and not list(output.glob(".*.tmp"))
    monkeypatch.undo()
    (output / ".train-000003.tar.77.tmp").write_bytes(b"left by a killed process")
    with (output / JOURNAL).open("a") as journal:
        journal.write('{"file": "train-0000')  # torn
    (output / "train-000001.tar").write_bytes(b"")
    seen = []
    make_shards(source, output, 8_000, 2, begin=lambda total, done: seen.append((total, done)))
    assert seen[0][0] == 22 and 0 < seen[0][1] < 10
    assert everything(output) == everything(shards)


def test_a_real_full_disk_leaves_no_half_shard(photos, tmp_path, monkeypatch):
    """A limit on the size of files stands for the disk: the write itself fails."""
    import resource

    source, before = open_source("folder", photos), resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"files may not become that large.*left need [\d,]+ bytes"):
            make_shards(source, tmp_path / "out", 1 << 20, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]


def test_a_disk_that_is_too_small_is_told_before(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"need [\d,]+ bytes \(.*\), and 1,000 \(.*\) are free"):
        make_shards(open_source("folder", photos), tmp_path / "out", 8_000, 1)


def test_folders_of_something_else_are_refused(photos, shards, tmp_path):
    source = open_source("folder", photos)
    with pytest.raises(DataError, match=r"holds finished shards \(shards\.json\)"):
        make_shards(source, shards, 8_000, 1)
    with pytest.raises(DataError, match=r"is not empty; give a new folder"):
        make_shards(source, photos, 8_000, 1)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / JOURNAL).write_text('{"job": "another"}\n')
    with pytest.raises(DataError, match=r"half made of other images or of another size"):
        make_shards(source, tmp_path / "half", 8_000, 1)


def test_images_that_cannot_be_read_are_left_out_and_named(photos, tmp_path):
    (photos / "train" / "cat" / "1.jpg").write_bytes(b"")
    made, bad = make_shards(open_source("folder", photos), tmp_path / "out", 8_000, 2)
    assert bad == {str(photos / "train" / "cat" / "1.jpg"): "the file is empty"}
    assert sum(one.images for one in made) == 21 and len(open_source("folder", tmp_path / "out").train) == 15


def test_classes_that_are_no_folders_are_not_unpacked(tmp_path):
    archive(tmp_path / "t.tar", ("1.jpg", b"x"), ("1.cls", b"../up"))
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(read_shards(tmp_path / "t.tar"), tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
