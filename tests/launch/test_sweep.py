"""`launch/sweep.py` with real runs: killed outright in the middle of a trial, it repeats no finished one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, until

FLAGS = (
    "--arch convnet_bn --data.name digits --data.limit 64 --image-size 16 --batch-size 16 --epochs 20 --data.workers 1"
)
FLAGS += " --precision fp32 --log.no-plots --log.monitor-interval 0"


def epochs_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["epoch"] for row in rows if row["kind"] == "epoch"]


def events_of(run: Path) -> list[str]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["event"] for row in rows if row["kind"] == "event"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on(root, tmp_path, how):
    ranges, folder = tmp_path / "ranges.yaml", tmp_path / "sweep"
    ranges.write_text("optim.lr: {choice: [1.0e-7, 0.003]}\n")
    command = [sys.executable, "launch/sweep.py", str(ranges), "--trials", "3", "--output", str(folder), *FLAGS.split()]
    command += ["--seed", "2"]  # draws the useless rate first: successive halving lets the second trial go on
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    until(lambda: epochs_of(folder / "trial-001"), [process])
    process.send_signal(how)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == (-how if how == signal.SIGKILL else 130), said
    finished = (folder / "trial-000" / "metrics.jsonl").read_bytes()

    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "trial-000" / "metrics.jsonl").read_bytes() == finished
    assert "trial 1/3" not in done.stdout and "trial 2/3 goes on" in done.stdout and "trial 3/3:" in done.stdout
    assert "resume" in events_of(folder / "trial-001")
    assert (folder / "sweep.html").is_file()


@pytest.mark.slow
def test_folds_of_the_digits(root, tmp_path):
    folder = tmp_path / "folds"
    command = [sys.executable, "launch/sweep.py", "--folds", "2", "--output", str(folder), *FLAGS.split()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over 2 folds" in done.stdout
    rows = [json.loads(line) for line in (folder / "trial-000" / "fold-1" / "metrics.jsonl").read_text().splitlines()]
    assert next(row["val_images"] for row in rows if row["kind"] == "epoch") in (898, 899)
