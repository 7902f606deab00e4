"""Faults that need a launcher: torchrun and one of its ranks, killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.faults.trial import FLAGS, Bench, Wrong, read_rows, refuse_strays

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240


def launch(run: Path, photos: Path, log: Path, *launcher: str) -> subprocess.Popen:
    """Two ranks under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *launcher]
    command += ["launch/train.py", *FLAGS, "--epochs", "20", "--data.root", str(photos), "--output", str(run)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The launcher's two processes, once both are there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(psutil.Error):  # one of them ended between two questions
            found = [one for one in psutil.Process(process.pid).children() if "launch/train.py" in one.cmdline()]
            if len(found) == 2:
                return found
        time.sleep(0.02)
    raise Wrong("the ranks did not start")


def reach(run: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until the run's metrics show `step`."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text(errors="replace").count('"kind": "step"') >= step:
            return
        time.sleep(0.01)
    raise Wrong(f"step {step} was not reached")


def ended(process: subprocess.Popen, log: Path) -> int:
    """The launcher's exit code. Raises Wrong for a hang."""
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise Wrong(f"hangs: {log.read_text(errors='replace')[-300:]}") from None


def refuse_orphans(ranks: list[psutil.Process], seconds: float = 60) -> None:
    """Raise Wrong for ranks that are still there after a while."""
    _, alive = psutil.wait_procs(ranks, timeout=seconds)
    for one in alive:
        one.kill()
    if alive:
        raise Wrong(f"{len(alive)} ranks outlive their launcher")


def kill_launcher(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of torchrun, in start-up or in training: its ranks save and end."""
    run, log = bench.folder / f"torchrun{chance.randrange(10**9)}", bench.folder / "torchrun.log"
    process = launch(run, bench.photos, log)
    try:
        ranks = ranks_of(process)
        step = chance.choice((0, chance.randrange(1, 20)))
        if step:
            reach(run, step, process)
        else:
            time.sleep(chance.uniform(0, 3))
    finally:
        process.kill()
        process.wait()
    refuse_orphans(ranks)
    if not (run / "config.yaml").exists():
        return "ended in start-up"
    code, said = bench.resume(run, "--epochs", "20").wait()
    if code:
        raise Wrong(f"going on ends with {code}: {said[-300:]}")
    refuse_strays(run)
    return "ended, went on"


def kill_rank(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of one of two ranks under --max-restarts 2: torchrun starts both anew, and the run goes on to its end."""
    run, log = bench.folder / f"restarted{chance.randrange(10**9)}", bench.folder / "restarted.log"
    process = launch(run, bench.photos, log, "--max-restarts", "2")
    try:
        ranks = ranks_of(process)
        reach(run, chance.randrange(1, 20), process)
        chance.choice(ranks).kill()
        code = ended(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text(errors="replace")
    if code:
        raise Wrong(f"exit {code}: {said[-500:]}")
    if "resuming from" not in said or read_rows(run)[-1]["epoch"] != 20:
        raise Wrong("it did not go on")
    refuse_orphans(ranks)
    refuse_strays(run)
    return "started anew, went on"
