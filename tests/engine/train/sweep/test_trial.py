"""One run of a sweep as a process: begun, gone on with, stopped after an epoch, failed."""

import dataclasses
import json

import pytest

from engine.config import RunConfig, from_yaml
from engine.runs.door import CannotWrite
from engine.train.sweep import trial
from engine.train.sweep.trial import TrialFailed, accuracies, is_finished, run_trial

PROGRAM = """
import json, signal, sys, time
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = Path(given.get("--output") or given["--resume"])
(folder / "arguments").write_text(json.dumps(sys.argv[1:]))
(folder / "config.yaml").write_text("optim: {epochs: 3}\\n")
rows = folder / "metrics.jsonl"
def tell(**row):
    with rows.open("a") as file:
        file.write(json.dumps(row | {"time": 0.0}) + "\\n")
def stop(*_):
    tell(kind="event", event="interrupted", step=1)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if BROKEN:
    print("error: no such data", file=sys.stderr)
    sys.exit(2)
for epoch in range(1, 4):
    tell(kind="epoch", epoch=epoch, step=epoch, val_accuracy=epoch / 10)
    while HELD and folder.is_dir():
        time.sleep(0.02)
tell(kind="event", event="finished", step=3)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program(broken=…, held=…): stands in for launch/train.py.

    held  after its first epoch until it is stopped, or its folder is moved away
    """

    def write(broken: bool = False, held: bool = False) -> None:
        script = tmp_path / "launch" / "train.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(PROGRAM.replace("BROKEN", str(broken)).replace("HELD", str(held)))
        monkeypatch.setattr(trial, "ROOT", tmp_path)

    write()
    return write


@pytest.fixture
def config():
    from engine.train.sweep.space import with_fields

    return with_fields(RunConfig(), {"optim.epochs": 3, "optim.lr": 0.25})


def test_a_run_is_begun_by_a_description_of_its_own(program, config, tmp_path):
    folder = tmp_path / "trial-000"
    assert run_trial(config, folder) == [0.1, 0.2, 0.3]
    told = json.loads((folder / "arguments").read_text())
    assert told == ["--config", str(tmp_path / "trial-000.yaml"), "--output", str(folder)]
    assert from_yaml(tmp_path / "trial-000.yaml") == config


def test_a_finished_run_is_read_and_not_run(program, config, tmp_path):
    folder = tmp_path / "trial-000"
    run_trial(config, folder)
    program(broken=True)
    assert run_trial(config, folder) == [0.1, 0.2, 0.3] == accuracies(folder)
    assert is_finished(folder, 3) and not is_finished(folder, 4) and not is_finished(tmp_path / "other", 1)


def test_a_run_is_stopped_after_an_epoch_and_goes_on(program, config, tmp_path):
    program(held=True)
    folder, asked = tmp_path / "trial-000", []
    seen = run_trial(config, folder, lambda seen: asked.append(list(seen)) or True)
    assert seen == asked[0] == [0.1] and not is_finished(folder, 3)
    program()
    run_trial(config, folder)
    assert json.loads((folder / "arguments").read_text()) == ["--resume", str(folder)]


def test_a_run_that_fails_says_why(program, config, tmp_path):
    program(broken=True)
    with pytest.raises(TrialFailed, match="exit code 2: no such data"):
        run_trial(config, tmp_path / "trial-000")


def test_a_stopped_sweep_lets_its_run_save(program, config, tmp_path):
    program(held=True)

    def interrupted(seen):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(config, tmp_path / "trial-000", interrupted)
    rows = (tmp_path / "trial-000" / "metrics.jsonl").read_text()
    assert '"interrupted"' in rows and '"finished"' not in rows


def test_a_folder_of_another_trial_is_not_taken_for_this_one(program, config, tmp_path):
    """A sweep's database was deleted and draws other values: what was finished then is another run."""
    run_trial(config, tmp_path / "trial-000")
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
    with pytest.raises(TrialFailed, match=r"trial-000 holds the run of another trial"):
        run_trial(other, tmp_path / "trial-000")
    (tmp_path / "trial-001").write_text("a file")
    with pytest.raises(CannotWrite, match="trial-001"):
        run_trial(config, tmp_path / "trial-001")


def test_a_folder_that_is_moved_away_in_mid_run_is_said(program, config, tmp_path):
    program(held=True)
    seen = []

    def move(accuracies):
        seen.append(accuracies)
        if len(seen) == 1:
            (tmp_path / "trial-000").rename(tmp_path / "moved")
        return False

    with pytest.raises(CannotWrite, match="trial-000 is gone"):
        run_trial(config, tmp_path / "trial-000", move)
