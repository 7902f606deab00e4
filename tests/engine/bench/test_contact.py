"""Steps in processes of their own: order, limits, what a crash or a hang costs, and going on."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench import contact
from engine.bench.contact import AFTER, STEPS, Contact, Step, first_contact
from engine.bench.instrument.options import Options
from engine.bench.instrument.record import Store
from engine.runs.provenance import ROOT
from tests.waiting import PATIENCE, until

MINUTES = 480.0


class Clock:
    """Time that passes where a step uses up its limit alone, however busy the machine is."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hangs(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """hangs(arrived): the first process to be begun is out of time as soon as `arrived()`; without, none ever is."""
    clock, begin, conditions = Clock(), contact.begin, []

    def begun(arguments, log):
        process = begin(arguments, log)
        wait, arrived = process.wait, conditions.pop() if conditions else lambda: False

        def limited(seconds: float) -> int:
            process.wait = wait
            until(lambda: process.poll() is not None or arrived())
            try:
                return wait(0)
            except subprocess.TimeoutExpired:
                clock.now += seconds
                raise

        process.wait = limited
        return process

    monkeypatch.setattr(contact, "time", clock)
    monkeypatch.setattr(contact, "GRACE", 0.1)
    monkeypatch.setattr(contact, "begin", begun)
    return conditions.append


@pytest.fixture
def made(tmp_path):
    """A contact in a folder of this test, and what it says."""
    said: list[str] = []
    return Contact(tmp_path, say=said.append), said


def python(name: str, code: str, seconds: float = 300.0, timed: bool = True) -> Step:
    return Step(name, seconds, ("-c", code), timed)


def alive(pid: str) -> bool:
    """Whether a process runs; one that has ended may still be in the table, until its parent asks for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_steps_are_those_of_eight_minutes_in_order_of_value():
    assert sum(step.seconds for step in STEPS) <= MINUTES
    names = [step.name for step in STEPS]
    assert names == ["tests", "training", "machine", "kernels", "archs", "memory", "graphs"]
    assert [step.timed for step in STEPS] == [False, False, *[True] * 5], "what is compiled ahead disturbs no timing"
    assert not {step.name for step in AFTER} & set(names)


def test_after_every_step_there_is_a_line_and_a_file(made):
    one, said = made
    statuses = first_contact(Options(budget=600.0), one, [python("a", "print('seen')"), python("b", "raise OSError")])
    assert statuses == {"a": "passed", "b": "failed"}
    assert said[0].startswith("a: passed in") and said[0].endswith("; seen") and "OSError" in said[1]
    document = json.loads(one.path.read_text())
    assert document["steps"]["b"]["exit_code"] == 1 and document["commit"] and document["versions"]["torch"]


def test_a_hang_costs_its_step_and_everything_that_it_started(made, hangs):
    """The grandchild ignores SIGTERM, as a process that hangs in a driver does."""
    one, _ = made
    log = one.logs / "hangs.log"
    hangs(lambda: log.read_text().count("\n") == 2)
    code = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\npid = os.fork()\n"
    code += "print(os.getpid(), flush=True)\n" + f"time.sleep({2 * PATIENCE})"
    statuses = first_contact(Options(budget=600.0), one, [python("hangs", code, 4.0), python("next", "")])
    assert statuses == {"hangs": "out of time", "next": "passed"}
    row = json.loads(one.path.read_text())["steps"]["hangs"]
    assert (row["seconds"], row["limit"]) == (4.0, 4.0) and not any(map(alive, log.read_text().split()))


def test_a_crash_is_told_as_one(made):
    one, said = made
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    assert first_contact(Options(budget=600.0), one, [python("dies", code)]) == {"dies": "crashed"}
    assert json.loads(one.path.read_text())["steps"]["dies"]["exit_code"] == -11 and "crashed" in said[0]


def test_what_the_budget_does_not_reach_is_taken_by_continue(tmp_path):
    said: list[str] = []
    steps = [python("a", "print(1)"), python("b", "print(2)")]
    first_contact(Options(budget=600.0), Contact(tmp_path, say=said.append), steps[:1])
    late = Contact(tmp_path, say=said.append)
    late.go_on()
    assert first_contact(Options(budget=1.0), late, steps) == {"b": "not reached"}
    assert said[-1] == "not reached within the budget: b; --continue takes them"
    again = Contact(tmp_path, say=said.append)
    again.go_on()
    assert first_contact(Options(budget=600.0), again, steps) == {"b": "passed"}
    assert set(json.loads(again.path.read_text())["steps"]) == {"a", "b"}


def test_another_commit_begins_anew(tmp_path, monkeypatch):
    first_contact(Options(budget=600.0), Contact(tmp_path, say=str), [python("a", "")])
    monkeypatch.setattr(contact, "commit", lambda: "another")
    one = Contact(tmp_path, say=str)
    one.go_on()
    assert one.missing(python("a", ""))


def test_what_compiles_ahead_is_gone_before_anything_is_timed(made):
    one, _ = made
    ahead = ("-c", "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    look = f"import pathlib, sys, time\nlog = pathlib.Path({str(one.logs)!r}) / 'ahead.log'\n"
    look += "while not log.read_text():\n    time.sleep(0.05)\n"
    look += "stat = pathlib.Path('/proc') / log.read_text().split()[0] / 'stat'\n"
    look += "state = stat.read_text().rpartition(')')[2].split()[0] if stat.exists() else 'Z'\nsys.exit(state == 'Z')"
    steps = [python("beside", look, timed=False), python("alone", look)]
    assert first_contact(Options(budget=600.0), one, steps, ahead) == {"beside": "passed", "alone": "failed"}


SUITE = """
import sys
print(sys.argv, flush=True)
sys.path.insert(0, {root!r})
from pathlib import Path
from engine.bench.instrument.record import Store
from tests.waiting import PATIENCE
store = Store("made", Path({output!r}))
for key in ("first", "second"):
    if store.has(key, {{}}, failed=True):
        continue
    store.begin(key, {{}})
    {what}
    store.put(key, {{}}, "measured", 0.0, {{"figures": {{}}}})
"""


@pytest.mark.parametrize(
    ("what", "status", "error"),
    [
        ("if key == 'first': __import__('os').abort()", "passed", "took its process with it (crashed)"),
        ("if key == 'first': __import__('time').sleep(600)", "out of time", "did not end"),
    ],
    ids=["crash", "hang"],
)
def test_a_row_that_takes_its_process_with_it_is_not_begun_again(
    tmp_path, root, monkeypatch, hangs, what, status, error
):
    store = Store("made", tmp_path)
    if status == "out of time":
        hangs(lambda: store.path.exists() and "running" in json.loads(store.path.read_text()))
    one = Contact(store.path.parent, say=str, fresh=True)
    code = SUITE.format(root=str(root), output=str(tmp_path), what=what)
    monkeypatch.setattr(Step, "suite", property(lambda self: "made"))
    monkeypatch.setattr(Contact, "forward", (), raising=False)
    script = tmp_path / "suite.py"
    script.write_text(code)
    assert one.run(Step("made", 40.0, (str(script),)), 100.0) == status
    rows = json.loads(store.path.read_text())["rows"]
    assert rows["first"]["status"] == "error" and rows["first"]["error"] == error
    assert ("second" in rows) == (status == "passed")
    assert (one.logs / "made.log").read_text().count("--fresh") == 1, "begun again, it goes on"
    assert Store("made", tmp_path).has("first", {}, failed=True) and not Store("made", tmp_path).has("first", {})


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is heard of on Linux")
def test_steps_end_with_a_report_that_is_killed(tmp_path):
    """They would measure beside those of the report that goes on, and write into its files."""
    step = f"import os, time\nprint(os.getpid(), flush=True)\ntime.sleep({2 * PATIENCE})"
    code = "from pathlib import Path\nfrom engine.bench.contact import Contact, Step, first_contact\n"
    code += "from engine.bench.instrument.options import Options\n"
    code += f"step = {step!r}\none = Contact(Path({str(tmp_path)!r}))\n"
    code += "first_contact(Options(budget=600.0), one, [Step('a', 600.0, ('-c', step), False)], ('-c', step))"
    logs = [tmp_path / "contact" / name for name in ("a.log", "ahead.log")]
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        until(lambda: all(log.is_file() and log.read_text().endswith("\n") for log in logs))
        process.kill()
    pids = [log.read_text().strip() for log in logs]
    until(lambda: not any(map(alive, pids)))


@pytest.mark.slow
def test_a_report_that_is_asked_to_end_ends_its_steps(tmp_path):
    command = [sys.executable, "launch/bench.py", "--report", "--dry-run", "--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until(lambda: [*tmp_path.rglob("training.json")])
        (children,) = [Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.terminate()
        told = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130 and "Traceback" not in told and children
    assert not any(map(alive, children))
