"""Damaged checkpoints, a folder that two want, disks that are full, folders that vanish: right by the exit code."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.config import ConfigError
from engine.recovery.checkpoint import checkpoint_folders, newest_whole
from engine.runs import door
from engine.runs.owner import read_owner
from engine.runs.runfolder import RunFolder


@pytest.fixture
def finished(run_here, tmp_path) -> Path:
    """A run of one epoch with a checkpoint at steps 2 and 4."""
    run_here("--log.checkpoint-steps", 2, "--log.save-best")
    assert [path.name[-1] for path in checkpoint_folders(tmp_path / "run/checkpoints")] == ["2", "4"]
    return tmp_path / "run"


def events(run: Path, kind: str) -> list[dict]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row.get("event") == kind]


def flip(path: Path, place: float = 0.5) -> None:
    """One bit, at a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "flipped": lambda newest: flip(newest / "trainer.pt"),
    "cut": lambda newest: os.truncate(newest / "trainer.pt", 1000),
    "emptied": lambda newest: os.truncate(newest / "trainer.pt", 0),
    "garbage": lambda newest: (newest / "trainer.pt").write_bytes(b"\x80\x02garbage" * 100),
    "deleted": lambda newest: (newest / "trainer.pt").unlink(),
    "checksums cut": lambda newest: os.truncate(newest / "checksums.json", 30),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_used(finished, resume, weights, damage):
    """F1, F2: and the run ends with the very bits of one that was never damaged."""
    whole = weights()
    newest = checkpoint_folders(finished / "checkpoints")[-1]
    DAMAGES[damage](newest)
    done = resume()
    assert f"passed over: checkpoint {newest} (" in done.out and "step-00000002" in done.out
    assert weights() == whole
    assert events(finished, "passed_over")[0]["path"] == str(newest)
    assert newest_whole(finished / "checkpoints") == (newest, [])


def test_no_whole_checkpoint_is_said_with_every_reason(finished, resume):
    for folder in checkpoint_folders(finished / "checkpoints"):
        flip(folder / "trainer.pt")
    before = (finished / "config.yaml").read_bytes(), (finished / "metrics.jsonl").read_bytes()
    done = resume("--epochs", 2, code=2)
    assert done.err.count("does not match its checksum") == 2 and "weights_only" not in done.err
    assert before == ((finished / "config.yaml").read_bytes(), (finished / "metrics.jsonl").read_bytes())  # F14


def test_a_named_damaged_checkpoint_is_refused(finished, run_here):
    newest = checkpoint_folders(finished / "checkpoints")[-1]
    flip(newest / "trainer.pt")
    done = run_here("--resume", newest, base=False, code=2)
    assert "does not match its checksum" in done.err and str(newest) in done.err


def test_older_checkpoints_are_held_to_their_archives(finished):
    """Without checksums.json: every flip in a tensor is found by the archive's own CRC."""
    newest = checkpoint_folders(finished / "checkpoints")[-1]
    (newest / "checksums.json").unlink()
    whole = (newest / "trainer.pt").read_bytes()
    for place in range(1, 10):
        flip(newest / "trainer.pt", place / 10)
        found, passed = newest_whole(finished / "checkpoints")
        assert found != newest and passed[0][0] == newest
        (newest / "trainer.pt").write_bytes(whole)
    assert newest_whole(finished / "checkpoints") == (newest, [])


def test_a_run_folder_may_be_called_like_a_checkpoint(run_here, photos, tmp_path):
    """F13."""
    run_here("--output", tmp_path / "step-1")
    done = run_here("--resume", tmp_path / "step-1", "--epochs", 2, base=False)
    assert "resuming from" in done.out


def hold(folder: Path) -> subprocess.Popen:
    """Another process that owns `folder`."""
    code = "import sys, time; from pathlib import Path; from engine.runs.owner import Ownership; "
    code += "held = Ownership(Path(sys.argv[1])); print('held', flush=True); time.sleep(3600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_owner_is_refused_until_the_first_is_gone(finished, resume, run_here, tmp_path):
    """F3: the second is told who; what a killed owner left is stale by itself."""
    before = (finished / "metrics.jsonl").read_bytes()
    process = hold(finished)
    try:
        done = resume("--epochs", 2, code=2)
        assert f"process {process.pid} on {os.uname().nodename}" in done.err
        assert (finished / "metrics.jsonl").read_bytes() == before
    finally:
        process.kill()
        process.communicate()
    assert read_owner(finished).pid == process.pid and not read_owner(finished).alive
    resume("--epochs", 2)
    assert not read_owner(finished).held


def test_two_new_runs_in_one_folder(tmp_path, run_here):
    folder = tmp_path / "run"
    folder.mkdir()
    process = hold(folder)
    try:
        done = run_here(code=2)
        assert f"process {process.pid} on" in done.err and not (folder / "config.yaml").exists()
    finally:
        process.kill()
        process.communicate()


def test_what_killed_writers_left_is_swept(finished, resume):
    """F12, F15: temporary files of processes that are no more, half checkpoints, also as links and files."""
    gone = 2**22 + 1  # above the largest process number
    strays = [finished / f".config.yaml.{gone}.tmp", finished / "checkpoints" / ".step-00000007.draft"]
    strays.append(finished / "checkpoints" / ".step-00000008.draft")
    strays.append(finished / "checkpoints" / ".step-00000009.draft")
    strays[0].write_text("half")
    strays[1].symlink_to(finished.parent)
    strays[2].write_text("a file")
    (strays[3] / "zero").mkdir(parents=True)
    (strays[3] / "zero" / "shard.pt").write_text("half")
    mine = finished / ".notes.tmp"
    mine.write_text("mine")
    resume("--epochs", 2)
    assert not [path for path in strays if path.exists() or path.is_symlink()]
    assert mine.read_text() == "mine" and (finished.parent / "photos").is_dir()


def test_a_draft_of_the_same_step_is_replaced(make_trainer):
    """F15, within a session: whatever lies where the draft goes."""
    trainer = make_trainer()
    draft = trainer.folder.checkpoints / ".step-00000000.draft"
    draft.symlink_to(trainer.folder.path)
    trainer.save()
    trainer.checkpointer.wait()
    draft.write_text("a file")
    trainer.save()
    trainer.checkpointer.wait()
    assert [path.name for path in trainer.folder.checkpoints.iterdir()] == ["step-00000000"]


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_cut_description_is_refused(finished, resume, keep):
    """F14: it would take defaults for what is missing."""
    whole = (finished / "config.yaml").read_text()
    cut = whole[: int(keep * len(whole))]
    (finished / "config.yaml").write_text(cut)
    done = resume("--epochs", 2, code=2)
    assert "config.yaml" in done.err
    assert (finished / "config.yaml").read_text() == cut


def test_every_cut_of_a_description_is_found(finished):
    whole = (finished / "config.yaml").read_text()
    described = whole.rindex("# all ")  # without its last line it is as earlier versions wrote it
    for end in (*range(0, described - 40, 11), *range(described - 40, described), *range(described + 1, len(whole))):
        (finished / "config.yaml").write_text(whole[:end])
        with pytest.raises(ConfigError):
            RunFolder.open(finished)
    (finished / "config.yaml").write_text(whole)
    RunFolder.open(finished).close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "input/output"),
    ],
)
def test_a_disk_that_takes_no_more(run_here, resume, weights, tmp_path, monkeypatch, number, words):
    """F8: the second checkpoint cannot be written; the first is named, no draft is left, and the run goes on later."""
    run_here()
    whole = weights()
    shutil.rmtree(tmp_path / "run")
    written, fail = [], door.Remembering.write

    def write(self, data):
        written.append(len(data))
        if checkpoint_folders(tmp_path / "run/checkpoints"):
            raise OSError(number, os.strerror(number))
        return fail(self, data)

    monkeypatch.setattr(door.Remembering, "write", write)
    done = run_here("--log.checkpoint-steps", 2, code=1)
    assert words in done.err and "step-00000002" in done.err and f"--resume {tmp_path / 'run'}" in done.err
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    resume()
    assert weights() == whole and written


def test_a_real_limit_on_file_sizes(run_here, tmp_path):
    """F8 without any patch: torch's and safetensors' writers in native code meet ulimit -f."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        done = run_here(code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in done.err and "cannot be written" in done.err
    assert not list((tmp_path / "run").rglob(".*.tmp")) + list((tmp_path / "run").rglob(".*.draft"))


class Vanish:
    """Moves the run folder away when the second batch is asked for."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self, original):
        def batch(loader, position):
            if position.step == 1 and self.run.exists():
                self.run.rename(self.run.with_name("moved"))
            return original(loader, position)

        return batch


def test_a_folder_that_is_moved_away(run_here, tmp_path, monkeypatch):
    """F9: an error; no new folder appears, and the moved run goes on where it is."""
    from engine.data.graph.dali import DaliLoader

    monkeypatch.setattr(DaliLoader, "_batch", Vanish(tmp_path / "run")(DaliLoader._batch))
    done = run_here("--log.every", 1, code=1)
    assert f"the run folder {tmp_path / 'run'} is gone" in done.err and "--resume FOLDER" in done.err
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    run_here("--resume", tmp_path / "moved", base=False)


def test_an_owner_on_another_machine_without_locks_is_believed(tmp_path, monkeypatch):
    """Where a network's disk has no locks, what the file says counts: another machine's, and this machine's living."""
    import fcntl

    from engine.runs.owner import Owner, Ownership

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    started = time.time()
    for host, pid, held, refused in (
        ("elsewhere", 1, True, True),
        ("elsewhere", 1, False, False),
        (os.uname().nodename, 2**22 + 1, True, False),
        (os.uname().nodename, os.getppid(), True, True),
    ):
        folder = tmp_path / f"{host}{pid}{held}"
        folder.mkdir()
        import psutil

        began = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else started
        owner = Owner(pid, host, started, began, 0, "", held)
        (folder / ".owner").write_text(json.dumps(vars(owner)))
        if refused:
            with pytest.raises(ConfigError, match=f"process {pid} on {host}"):
                Ownership(folder)
        else:
            Ownership(folder).release()
