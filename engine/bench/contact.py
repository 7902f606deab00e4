"""First contact with a GPU: what must be known of it in eight minutes, in the order in which it must be known.

Every step is a process of its own with a limit of its own: a crash costs the row that crashed, a hang its step, and
both are told. After each there is a line, and a file that is whole (contact.json beside the suites' files, with the
step's output in contact/NAME.log). What compiles is compiled ahead by other processes while the first steps, which are
passed or failed but not timed, run.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from engine.bench.instrument.options import Options
from engine.bench.instrument.record import give_up_running, write_document
from engine.recovery.interrupt import end_with_parent
from engine.runs.provenance import ROOT, command, commit, today, versions

NETWORKS = ("resnet50", "mobilenetv2", "resnext50", "darknet53", "inceptionv3")
AGAIN = 3
"""Times that a suite is begun again after a row took the GPU away from its process."""
STARTS = 8.0
"""Seconds of a suite's limit that its budget leaves: importing before the first row, writing after the last."""
GRACE = 3.0
"""Seconds between a request to end and the end."""

PROCESSES = ("--numprocesses", str(max(1, (os.cpu_count() or 1) // 3))) if find_spec("xdist") else ()
"""Of the tests: on an H200 with 16 cores one process would have taken several times their limit, compiling kernels."""


@dataclass(frozen=True)
class Step:
    """One process: its name, how many seconds it may take, and its arguments behind `python`."""

    name: str
    seconds: float
    arguments: tuple[str, ...]
    timed: bool = True
    """Whether it measures time: then nothing else may run beside it."""

    @property
    def suite(self) -> str:
        """The suite that it runs; empty where it runs none."""
        return self.arguments[2] if self.arguments[:2] == ("launch/bench.py", "--suite") else ""


def suite(name: str, seconds: float, *arguments: str, timed: bool = True) -> Step:
    """A step that runs a suite within its limit."""
    return Step(name, seconds, ("launch/bench.py", "--suite", name, *arguments), timed)


STEPS = (
    Step(
        "tests",
        55.0,
        ("-m", "pytest", "-m", "gpu and not slow", "-v", "--tb=line", "-p", "no:cacheprovider", *PROCESSES, "tests"),
        False,
    ),
    suite("training", 55.0, timed=False),
    suite("machine", 25.0),
    suite("kernels", 120.0),
    suite("archs", 120.0, "--warmed", "--arch", *NETWORKS),
    suite("memory", 60.0),
    suite("graphs", 30.0),
)
"""The eight minutes."""
AFTER = (
    suite("trainer", 180.0),
    suite("loader", 120.0),
    suite("zoo", 600.0),
    suite("compile", 180.0),
    suite("startup", 90.0),
    suite("accuracy", math.inf),
)
"""What a larger budget goes on with."""


class Contact:
    """Runs steps and keeps what became of each in `folder`/contact.json.

    forward  arguments that every suite is given
    fresh    suites measure again what is in their files
    """

    def __init__(
        self, folder: Path, forward: Sequence[str] = (), say: Callable[[str], None] = print, fresh: bool = False
    ) -> None:
        self.folder, self.forward, self.say, self.fresh = folder, tuple(forward), say, fresh
        self.path, self.logs = folder / "contact.json", folder / "contact"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.document: dict[str, Any] = {"commit": commit(), "command": command(), "date": today(), "steps": {}}
        self.document["versions"] = versions()

    def go_on(self) -> None:
        """Keep what an earlier contact at this commit has done."""
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if before.get("commit") == self.document["commit"]:
            self.document["steps"] = before.get("steps", {})

    def missing(self, step: Step) -> bool:
        """Whether a step has not come to its own end yet, well or badly."""
        return self.document["steps"].get(step.name, {}).get("status") not in ("passed", "failed")

    def run(self, step: Step, left: float) -> str:
        """Run a step within `left` seconds at most; returns its status: passed, failed, crashed or out of time."""
        limit, began = min(step.seconds, left), time.monotonic()
        status, code = "crashed", None
        for turn in range(AGAIN):
            spare = limit - (time.monotonic() - began)
            if spare <= 0:
                status = "out of time"
                break
            status, code = self._once(step, spare, first=turn == 0)
            if not (step.suite and self._to_go_on(step, status)):
                break
        seconds = round(time.monotonic() - began, 1)
        tail = self._tail(step)
        row = {"status": status, "exit_code": code, "seconds": seconds, "limit": _finite(limit), "tail": tail}
        self.document["steps"][step.name] = row
        write_document(self.path, self.document)
        self.say(f"{step.name}: {status} in {seconds:.0f} s" + (f"; {tail[-1]}" if tail else ""))
        return status

    def _once(self, step: Step, seconds: float, first: bool) -> tuple[str, int | None]:
        arguments = [*step.arguments]
        if step.suite:
            arguments += [*self.forward, "--continue"]
            arguments += ["--fresh"] if self.fresh and first else []  # begun again, it goes on with what it has
            arguments += [] if math.isinf(seconds) else ["--budget", f"{max(1, round(seconds - STARTS))}s"]
        with (self.logs / f"{step.name}.log").open("wb" if first else "ab") as log:
            process = begin(arguments, log)
            try:
                code = process.wait(None if math.isinf(seconds) else seconds)
            except subprocess.TimeoutExpired:
                end(process)
                return "out of time", None
            except BaseException:
                end(process)
                raise
        return ("passed" if code == 0 else "failed" if code > 0 else "crashed"), code

    def _to_go_on(self, step: Step, status: str) -> bool:
        """Whether a suite has to be begun again for the rows behind the one that it ended in."""
        out_of_time = status == "out of time"
        why = "did not end" if out_of_time else f"took its process with it ({status})"
        lost, broke_off = give_up_running(self.folder / f"{step.suite}.json", why)
        return lost or (broke_off and not out_of_time)

    def told(self) -> list[tuple[str, str, str]]:
        """(step, status, seconds) of each, for a table."""
        steps = self.document["steps"].items()
        return [(name, row["status"], f"{row['seconds']:.0f}") for name, row in steps]

    def _tail(self, step: Step) -> list[str]:
        """The last three lines that a step said."""
        text = (self.logs / f"{step.name}.log").read_text(encoding="utf-8", errors="replace")
        return [line[:200] for line in text.splitlines() if line.strip()][-3:]


def begin(arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen:
    """A Python process in a session of its own, which ends with this one; what it says goes into `log`."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=end_with_parent(),
    )


def end(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def first_contact(
    options: Options, contact: Contact, steps: Sequence[Step] = (*STEPS, *AFTER), ahead: Sequence[str] = ()
) -> dict[str, str]:
    """Run the steps within the options' budget; returns each one's status.

    ahead  arguments behind `python` of a process that compiles ahead while steps run that are not timed
    """
    ends = time.monotonic() + options.budget
    statuses: dict[str, str] = {}
    waiting = [step for step in steps if contact.missing(step)]
    compiling = None
    if ahead and waiting:
        with (contact.logs / "ahead.log").open("wb") as log:
            compiling = begin(ahead, log)
    try:
        for step in waiting:
            if step.timed and compiling is not None:
                end(compiling)
                compiling = None
            left = ends - time.monotonic()
            if left <= GRACE:
                statuses[step.name] = "not reached"
                continue
            statuses[step.name] = contact.run(step, left)
    finally:
        if compiling is not None:
            end(compiling)
    if missed := [name for name, status in statuses.items() if status == "not reached"]:
        contact.say(f"not reached within the budget: {', '.join(missed)}; --continue takes them")
    return statuses


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else round(seconds, 1)
