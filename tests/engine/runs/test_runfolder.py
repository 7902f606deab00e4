"""Run folders: named, refused, written whole or not at all."""

import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from engine.config import ConfigError, LogConfig, RunConfig
from engine.runs.door import CannotWrite, atomic_file, writing
from engine.runs.runfolder import RunFolder


def test_unnamed_runs_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {RunFolder.create(RunConfig(), "resnet18", "digits").path for _ in range(3)}
    assert len(folders) == 3
    assert all(path.parent.name == "runs" and path.name.startswith("resnet18-digits-") for path in folders)


def test_a_run_is_not_written_over(tmp_path):
    config = RunConfig(log=LogConfig(output=tmp_path / "a"))
    RunFolder.create(config, "resnet18", "digits")
    with pytest.raises(ConfigError, match=r"holds another run; go on with it by --resume"):
        RunFolder.create(config, "resnet18", "digits")


def test_a_folder_with_other_things_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(RunConfig(log=LogConfig(output=tmp_path)), "resnet18", "digits")
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "config.yaml").is_file()


def test_a_neighbour_that_is_being_written_is_not_swept(tmp_path):
    """`--output runs` where runs/ holds runs: what they write at this moment is theirs."""
    other = RunFolder.create(RunConfig(log=LogConfig(output=tmp_path / "other")), "resnet18", "digits")
    draft, own = other.checkpoints / ".step-00000004.draft", tmp_path / "more" / ".step-00000004.draft"
    draft.mkdir()
    own.mkdir(parents=True)
    RunFolder.create(RunConfig(log=LogConfig(output=tmp_path)), "resnet18", "digits")
    assert draft.is_dir() and not own.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_was_killed_is_swept_by_the_next_of_its_file(tmp_path):
    """An evaluation's, which owns no run folder; one that may be written at this moment is let be."""
    old, new, other = (tmp_path / f".{name}.tmp" for name in ("a[b].png.77", "a[b].png.78", "ab.png.77"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (0, 0))
    with atomic_file(tmp_path / "a[b].png") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([new.name, other.name, "a[b].png"])


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_umasks_mode_whoever_writes_them(tmp_path, umask, mode):
    """safetensors makes its file private to the user."""
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "model.safetensors") as temporary:
            save_file({"weight": torch.zeros(1)}, temporary)
        RunFolder(tmp_path).write_text("config.yaml", "")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_a_quota_that_a_library_tells_in_its_own_words(tmp_path):
    """There is room on the disk: nothing but the error shows it."""
    path = tmp_path / "model.safetensors"
    with pytest.raises(CannotWrite, match=r"cannot be written: the quota on this disk is used up"), writing(path):
        raise SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")
    with pytest.raises(SafetensorError, match="no such tensor"), writing(path):
        raise SafetensorError("no such tensor")


def test_rows_after_a_torn_one_can_be_read(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append("step", step=1, loss=float("nan"))
    with folder.metrics.open("a") as file:
        file.write('{"kind": "step", "st')
    RunFolder(tmp_path).append("step", step=2)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(row["step"], row.get("loss")) for row in rows] == [(1, None), (2, None)]
