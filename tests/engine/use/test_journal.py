"""A long job's rows: whole batches survive, half a row does not, and another job's are refused."""

import errno
import os

import numpy as np
import pytest
from safetensors import safe_open

from engine.config import ConfigError
from engine.runs.door import CannotWrite
from engine.use.journal import FeatureFile, Journal, part_of

JOB = {"weights": "abc", "top_k": 5}


def rows(first: int, count: int) -> list[dict]:
    return [{"path": f"{number}.jpg"} for number in range(first, first + count)]


def test_a_job_goes_on_at_a_whole_batch(tmp_path):
    path = tmp_path / "x.csv"
    with Journal(path, JOB, batch=4) as journal:
        journal.add(rows(0, 4))
        journal.add(rows(4, 4))
        journal.add(rows(8, 2))  # the last batch of ten
    with part_of(path).open("ab") as file:
        file.write(b'{"path": "10.j')  # killed in the middle of a row
    with Journal(path, JOB, batch=4) as journal:
        assert journal.rows == 8
        journal.add(rows(8, 2))
        assert list(journal.read()) == rows(0, 10)
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_header_that_is_cut_is_begun_anew(tmp_path):
    part_of(tmp_path / "x.csv").write_bytes(b'{"weights": "a')
    with Journal(tmp_path / "x.csv", JOB, 4) as journal:
        assert journal.rows == 0 and list(journal.read()) == []


def test_a_job_that_fails_before_its_first_batch_leaves_nothing(tmp_path):
    features = tmp_path / ".e.npy.rows.part"
    for error, done in ((MemoryError, 0), (KeyboardInterrupt, 0), (MemoryError, 4)):
        with pytest.raises(error), Journal(tmp_path / "x.csv", JOB, 4, (features,)) as journal:
            features.write_bytes(b"x")
            if done:
                journal.add(rows(0, done))
            raise error
        assert part_of(tmp_path / "x.csv").exists() == features.exists() == bool(done)


@pytest.mark.parametrize("line", [b"no JSON\n", b"[1]\n", b"\xff\n"])
def test_a_file_that_is_no_journal_is_kept_where_it_has_rows(tmp_path, line):
    part_of(tmp_path / "x.csv").write_bytes(line + b"mine\n")
    with pytest.raises(ConfigError, match=r"\.x\.csv\.part is an unfinished job with other .*; remove it"):
        Journal(tmp_path / "x.csv", JOB, 4)
    assert part_of(tmp_path / "x.csv").read_bytes() == line + b"mine\n"


def test_another_job_without_a_row_is_begun_anew(tmp_path):
    """It was killed before its first batch was done: no work is lost."""
    with Journal(tmp_path / "x.csv", JOB | {"top_k": 3}, 4):
        pass
    with Journal(tmp_path / "x.csv", JOB, 4) as journal:
        journal.add(rows(0, 4))
    with Journal(tmp_path / "x.csv", JOB, 4) as journal:
        assert journal.rows == 4 and list(journal.read()) == rows(0, 4)


def test_another_job_is_refused_by_what_differs(tmp_path):
    with Journal(tmp_path / "x.csv", JOB, 4) as journal:
        journal.add(rows(0, 4))
    with pytest.raises(ConfigError, match=r"\.x\.csv\.part is an unfinished job with other top_k; remove it"):
        Journal(tmp_path / "x.csv", JOB | {"top_k": 3}, 4)
    with Journal(tmp_path / "x.csv", JOB, 4) as journal:
        assert journal.rows == 4, "a refusal takes nothing away"


def test_two_processes_do_not_write_one_file(tmp_path):
    with Journal(tmp_path / "x.csv", JOB, 4), pytest.raises(ConfigError, match="another process is writing"):
        Journal(tmp_path / "x.csv", JOB, 4)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        Journal(tmp_path / "gone" / "x.csv", JOB, 4)


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_features_go_on_too(tmp_path, ending):
    path, features = tmp_path / f"f{ending}", np.arange(20, dtype=np.float32).reshape(10, 2)
    features[3] = np.nan
    FeatureFile(path, 10).put(0, features[:4])
    again = FeatureFile(path, 10)
    again.put(4, features[4:])
    again.finish([f"{number}.jpg" for number in range(10)])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if ending == ".npy":
        found = np.load(path)
    else:
        with safe_open(path, framework="numpy") as file:
            found = file.get_tensor("features")
            assert "9.jpg" in file.metadata()["paths"]
    np.testing.assert_array_equal(found, features)


def test_features_of_another_width_are_begun_anew(tmp_path):
    FeatureFile(tmp_path / "f.npy", 4).put(0, np.ones((4, 3), np.float32))
    file = FeatureFile(tmp_path / "f.npy", 4)
    file.put(0, np.ones((4, 5), np.float32))
    file.finish([])
    assert np.load(tmp_path / "f.npy").shape == (4, 5)


def test_a_disk_that_has_no_room_for_all_rows_is_told_at_once(tmp_path, monkeypatch):
    """Rows lie in a mapped file: a page that the disk has no room for would end the process by a signal (SIGBUS)."""

    def full(*more: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CannotWrite, match=r"x\.npy cannot be written: the disk is full"):
        FeatureFile(tmp_path / "x.npy", 3).put(0, np.zeros((2, 4), np.float32))
    assert not list(tmp_path.iterdir())


def test_rows_that_a_full_disk_does_not_take_are_told_with_the_file(tmp_path, monkeypatch):
    with Journal(tmp_path / "x.csv", {"job": 1}, 2) as journal:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CannotWrite, match=r"\.x\.csv\.part cannot be written: the disk is full"):
            journal.add([{"row": 1}])
