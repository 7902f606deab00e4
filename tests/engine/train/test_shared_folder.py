"""Whether all machines have the run folder that the first rank made."""

import threading

import pytest

from engine.runs.owner import NAME
from engine.runs.runfolder import RunFolder
from engine.train.shared_folder import sees


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_one_that_is_there_is_seen_at_once(folder):
    (folder.path / NAME).write_text("rank 0")
    assert sees(folder, "rank 0", 0.0)


def test_one_that_a_slow_disk_shows_later_is_seen(folder):
    later = threading.Timer(0.2, (folder.path / NAME).write_text, ["rank 0"])
    later.start()
    assert sees(folder, "rank 0", 60.0)
    later.join()


def test_none_and_another_ones_are_not(folder):
    assert not sees(folder, "rank 0", 0.1)
    (folder.path / NAME).write_text("of last week")
    assert not sees(folder, "rank 0", 0.1)
