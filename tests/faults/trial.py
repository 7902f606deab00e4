"""One run in a process of its own that can be killed, and what it left, compared with a run that nothing disturbed.

The child is forked from a process that has imported everything already: a trial takes about a second, and a SIGKILL is
a real one. It runs what launch/train.py runs, with its own session, streams and exit code.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from safetensors.torch import load_file

SECONDS = 120
"""Of one run, on a busy machine; longer counts as a hang."""
FLAGS = ["--arch", "convnet_bn", "--image-size", "32", "--batch-size", "4", "--epochs", "2", "--precision", "fp32"]
FLAGS += ["--log.no-plots", "--log.monitor-interval", "0", "--data.workers", "1", "--data.prefetch", "1"]
FLAGS += ["--log.every", "1", "--log.checkpoint-steps", "3", "--optim.ema", "0.9", "--parallel.threads", "1"]
SAME = ("step", "epoch", "loss", "accuracy", "train_loss", "val_loss", "val_accuracy", "lr")
"""Fields of a row that a disturbed run must have to the last digit."""


class Wrong(AssertionError):
    """What a trial found; the message is for the table."""


def photos(root: Path) -> Path:
    """Two classes, 8 + 4 small pictures each."""
    for split, count in (("train", 8), ("val", 4)):
        for place, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(1000 * place + number).integers(0, 255, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.jpg")
    return root


@dataclass
class Child:
    """A run that was started."""

    pid: int
    log: Path
    began: float = field(default_factory=time.monotonic)

    def signal(self, number: signal.Signals) -> None:
        """Send it; a child that has ended hears nothing."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 0.0, frames: bool = False) -> tuple[int, str]:
        """(exit code, all that it said); negative is the signal that ended it. Raises Wrong for a hang or orphans.

        seconds  until it counts as a hang; 0 is SECONDS
        frames   a traceback is no fault: of a rank that lost the others
        """
        deadline = time.monotonic() + (seconds or SECONDS)
        status = 0
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Wrong(f"hangs: {self.log.read_text(errors='replace')[-300:]}")
            time.sleep(0.005)
        said = self.log.read_text(errors="replace")
        orphans = [one.pid for one in psutil.process_iter() if _session(one.pid) == self.pid and _runs(one)]
        if orphans:
            raise Wrong(f"{len(orphans)} processes outlive it")
        if "Traceback" in said and not frames:
            raise Wrong(f"traceback: {said[-600:]}")
        return os.waitstatus_to_exitcode(status), said


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def start(flags: list[str], log: Path, before: Callable[[], None] = lambda: None) -> Child:
    """Fork a run with these flags; `before` is called in it first."""
    return Child(forked(lambda: _run(flags, before), log), log)


def forked(work: Callable[[], int], log: Path | None = None, environment: Mapping[str, str] | None = None) -> int:
    """The number of a process of its own session that does `work`, which gives its exit code.

    log          where its streams go; None: to its parent's
    environment  all of it; None: its parent's
    """
    import engine.train.session  # noqa: F401  (torch and all are imported here, once)

    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        if log is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def train_forked(flags: list[str], before: Callable[[], None]) -> int:
    """What a forked rank does; torchrun's own handlers and group are not its."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    return _run(flags, before)


def _run(flags: list[str], before: Callable[[], None]) -> int:
    import logging

    from accelerate.state import AcceleratorState, GradientState, PartialState

    from engine.config import ConfigError, parse
    from engine.recovery.start import begin
    from engine.train.run import fail, train

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    logging.getLogger("hcr").handlers.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    begin()
    before()
    try:
        return train(parse(flags))
    except ConfigError as error:
        return fail(error)


def note_imports(path: Path) -> None:
    """Write down, when this process's run ends, what it has imported."""
    from engine.train.session import Session

    close = Session.close

    def noted(self: Session) -> None:
        close(self)
        path.write_text("\n".join(sys.modules))

    Session.close = noted  # type: ignore[method-assign]


def warm_up(first: Child, path: Path) -> None:
    """Import here what a run imports on its way, so that those forked from here have it: most of a short run's time."""
    import importlib

    code, said = first.wait()
    if code:
        raise Wrong(f"the first run ends with {code}: {said}")
    for name in path.read_text().split():
        if name not in sys.modules and name != "__main__":
            with suppress(Exception):  # a name that some module made up
                importlib.import_module(name)


class Bench:
    """A folder for trials: the pictures, and the run that nothing disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = photos(folder / "photos")
        self.whole = folder / "whole"
        warm_up(self.start(folder / "first", before=lambda: note_imports(folder / "imports")), folder / "imports")
        child = self.start(self.whole)
        code, said = child.wait()
        if code:
            raise Wrong(f"the undisturbed run ends with {code}: {said}")
        self.seconds = time.monotonic() - child.began
        self.weights, self.rows = read_weights(self.whole), read_rows(self.whole)

    def start(
        self, run: Path, *more: str, before: Callable[[], None] = lambda: None, data: Path | None = None
    ) -> Child:
        """A new run in `run`."""
        flags = [*FLAGS, "--data.root", str(data or self.photos), "--output", str(run), *more]
        return start(flags, run.with_name(f"{run.name}.log"), before)

    def resume(self, run: Path, *more: str) -> Child:
        """Go on with `run`."""
        return start(["--resume", str(run), *more], run.with_name(f"{run.name}.log"))

    def copy(self, name: str) -> Path:
        """The undisturbed run, to be damaged."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.whole, self.folder / name))

    def finish(self, run: Path) -> str:
        """Go on with `run` to its end, and compare; returns what that run said. Raises Wrong."""
        code, said = self.resume(run).wait()
        if code:
            raise Wrong(f"going on ends with {code}: {said[-400:]}")
        self.compare(run)
        return said

    def compare(self, run: Path) -> None:
        """`compare` with the undisturbed run."""
        compare(run, self.weights, self.rows)


def compare(run: Path, weights: dict[str, bytes], rows: list[dict]) -> None:
    """Raise Wrong unless `run` ended with these bits and rows, and left nothing lying about."""
    if read_weights(run) != weights:
        raise Wrong("other weights")
    if (found := read_rows(run)) != rows:
        at = next((a for a, b in zip(rows, found, strict=False) if a != b), "their number")
        raise Wrong(f"other rows: {at}")
    refuse_strays(run)


def read_weights(run: Path) -> dict[str, bytes]:
    """Bits by name."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(run / "model.safetensors").items()}


def read_rows(run: Path) -> list[dict]:
    """The rows that count, as the report reads them, without times and speeds."""
    from engine.runs.history import read_history

    history = read_history(run)
    return [{key: row[key] for key in SAME if key in row} for row in [*history.steps, *history.epochs]]


def refuse_strays(run: Path) -> None:
    """Raise Wrong for temporary files and half checkpoints."""
    strays = [path.name for path in [*run.rglob(".*.tmp"), *run.rglob(".*.draft")]]
    if strays:
        raise Wrong(f"left lying: {', '.join(strays)}")


def moment(kind: str, number: int) -> random.Random:
    """The random numbers of one trial, the same on every machine."""
    return random.Random(f"{kind} {number}")
