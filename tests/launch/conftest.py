"""Runs of the entry points in processes of their own, as a person starts them, and of their code in the test's own."""

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from archs import registry
from tests.waiting import PATIENCE

SCRIPT = "tests/launch/norm_free.py"
TINY = ["--arch", "norm_free", "--image-size", "32", "--batch-size", "40", "--data.limit", "260", "--log.every", "1"]
# At a rate of 0.03 training is not stable, and rounding grows from 1e-7 to 1e-3 within 20 steps.
TINY += ["--precision", "fp32", "--optimizer", "sgd", "--lr", "0.01", "--epochs", "5", "--log.no-plots"]


def environment(**extra: str) -> dict[str, str]:
    """One thread a process, and nothing left over from a launcher."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))}
    return kept | {"OMP_NUM_THREADS": "1", "DS_LOG_LEVEL": "error"} | extra


def run_to_the_end(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Run a command and what it starts; past the time limit all of it is killed."""
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def start_ranks(root: Path, arguments: list, ranks: int, code: int, extra: dict[str, str]):
    """Run a script on so many ranks to its end, which has to be `code`; returns the finished process."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
    done = run_to_the_end([*command, *map(str, arguments)], root, environment(**extra))
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a run that takes seconds."""
    return list(TINY)


@pytest.fixture(scope="session")
def rows():
    """Reads the rows of one kind from a run's metrics.jsonl."""

    def read(folder: Path, kind: str) -> list[dict]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    return read


@pytest.fixture(scope="session")
def launch(root):
    """Start a script with arguments, on `ranks` processes; returns the finished process."""

    def start(*arguments, script: str = SCRIPT, ranks: int = 1, code: int = 0, **extra: str):
        if ranks > 1:
            extra.setdefault("ACCELERATE_USE_CPU", "true")
        return start_ranks(root, [script, *arguments], ranks, code, extra)

    return start


@pytest.fixture
def here(capsys, monkeypatch, root):
    """Run what SCRIPT runs in this process, which has torch loaded already; returns as `launch` does.

    For what does not depend on how a process starts and ends.
    """
    for known in ("_INFOS", "_CONSTRUCTORS"):  # the script's network is known while this lasts
        monkeypatch.setattr(registry, known, dict(getattr(registry, known)))
    runpy.run_path(str(root / SCRIPT))
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from engine.config import ConfigError
    from engine.train.run import described, fail, train

    def forget() -> None:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        logging.getLogger("hcr").handlers.clear()  # its stream is that of an earlier test

    def run(*arguments, code: int = 0) -> subprocess.CompletedProcess:
        forget()
        capsys.readouterr()
        try:
            ended = train(described([str(argument) for argument in arguments]))
        except ConfigError as error:
            ended = fail(error)
        except SystemExit as error:  # of a flag that the parser does not know
            ended = error.code
        done = subprocess.CompletedProcess(arguments, ended, *capsys.readouterr())
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    yield run
    forget()


@pytest.fixture(scope="session")
def references(launch, tmp_path_factory):
    """The runs that the others are compared with, each made once: one process, or DDP where the batch is split."""
    made = {}

    def reference(flags: list, ranks: int) -> Path:
        key = (*map(str, flags), ranks)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("reference") / "run"
            launch(*flags, "--output", made[key], script="launch/train.py", ranks=ranks)
        return made[key]

    return reference


@pytest.fixture(scope="session")
def alone(launch, tiny, tmp_path_factory):
    """The run that the others are compared with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    launch(*tiny, "--output", folder)
    return folder
