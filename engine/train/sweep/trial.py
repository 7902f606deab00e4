"""One run of a sweep in a process of its own: begun, gone on with, watched epoch by epoch, stopped early."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine.config import ConfigError, RunConfig, to_yaml
from engine.recovery.interrupt import end_with_parent
from engine.runs.door import atomic_file, cannot_write, writing
from engine.runs.history import NotARun, read_history
from engine.runs.owner import Ownership
from engine.runs.provenance import ROOT

POLL_SECONDS = 0.2
SAVING_SECONDS = 120.0


class TrialFailed(RuntimeError):
    """A run ended without its last epoch; the message has its last line of errors."""


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the run in `folder` has come to its end."""
    try:
        history = read_history(folder)
    except NotARun:
        return False
    early = any(row.get("event") == "ended_early" for row in history.events)
    return history.state == "finished" and (len(history.epochs) >= epochs or early)


def accuracies(folder: Path) -> list[float]:
    """Val accuracy after each epoch so far, as shares."""
    try:
        return [row["val_accuracy"] for row in read_history(folder).epochs if row.get("val_accuracy") is not None]
    except NotARun:
        return []


def run_trial(config: RunConfig, folder: Path, stop: Callable[[list[float]], bool] = lambda seen: False) -> list[float]:
    """Train `config` in `folder`, or go on with what is there; returns the val accuracy after each epoch.

    stop  asked after each epoch with the accuracies so far: True ends the run, which then is no failure

    Raises TrialFailed where the run failed, CannotWrite where its folder is gone; KeyboardInterrupt goes to the run
    first, which saves.
    """
    description = folder.with_suffix(".yaml")
    if description.exists() and description.read_bytes() != to_yaml(config).encode():
        raise TrialFailed(f"{folder} holds the run of another trial: {description.name} has other fields")
    if is_finished(folder, config.optim.epochs):
        return accuracies(folder)
    if (folder / "config.yaml").is_file():
        wait_until_free(folder)
        seen = accuracies(folder)
        if is_finished(folder, config.optim.epochs) or (seen and stop(seen)):
            return seen
        flags = ["--resume", str(folder)]
    else:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(description) as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        flags = ["--config", str(description), "--output", str(folder)]
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *flags]
    with (folder / "output.log").open("ab") as log:
        # a group of its own: a terminal's Ctrl-C comes here alone, and the run is told once
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, process_group=0, preexec_fn=end_with_parent()
        )
        try:
            stopped = _watch(process, folder, stop)
        except BaseException:
            _end(process)
            raise
    if not folder.is_dir():
        raise cannot_write(folder / "output.log", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    seen = accuracies(folder)
    if not stopped and not is_finished(folder, config.optim.epochs):
        raise TrialFailed(_last_error(folder / "output.log", process.returncode))
    return seen


def wait_until_free(folder: Path) -> None:
    """Wait for the run that a killed sweep left saving. Raises TrialFailed where it does not end."""
    deadline = time.monotonic() + SAVING_SECONDS
    while True:
        try:
            Ownership(folder).release()
            return
        except ConfigError as error:
            if time.monotonic() > deadline:
                raise TrialFailed(str(error)) from None
        time.sleep(POLL_SECONDS)


def _watch(process: subprocess.Popen, folder: Path, stop: Callable[[list[float]], bool]) -> bool:
    """Wait for the run's end; True where `stop` ended it."""
    told = 0
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        seen = accuracies(folder)
        if len(seen) > told:
            told = len(seen)
            if stop(seen):
                _end(process)
                return True
    return False


def _end(process: subprocess.Popen) -> None:
    """Let the run save and end; waits for it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=SAVING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_error(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
    return f"exit code {code}: {told.removeprefix('error: ')}"


def write_result(path: Path, value: dict) -> None:
    """Write a small JSON file in one step."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def claim(folder: Path) -> int:
    """Take the sweep's folder for this process; returns its lock. Raises ConfigError where it is in use."""
    import fcntl

    path = folder / ".sweep.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"--output {folder}: {cannot_write(path, error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"--output {folder}: another sweep is at work there") from None
    return descriptor
