"""Signals: the first is remembered, the second is obeyed at once, and what was there before comes back."""

import os
import signal
import subprocess
import sys

import pytest

from engine.recovery.interrupt import Interrupt
from tests.waiting import PATIENCE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_first_signal_is_remembered(number, code, capfd):
    found = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored
    try:
        with Interrupt() as interrupt:
            assert interrupt.exit_code == 0
            signal.raise_signal(number)
            assert interrupt.exit_code == code
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, found)
    assert f"{number.name}: finishing this step" in capfd.readouterr().err


def test_second_signal_stops_at_once(root):
    code = "import signal\nfrom engine.recovery.interrupt import Interrupt\nwith Interrupt():\n"
    code += "    signal.raise_signal(signal.SIGTERM); print('alive', flush=True); signal.raise_signal(signal.SIGTERM)\n"
    code += "    print('still there')"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "alive\n"


def test_a_signal_that_is_ignored_stays_ignored():
    """nohup starts a program with SIGHUP ignored; a hang-up must not stop that run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_a_hang_up_is_no_second_signal(root, first):
    """The terminal's and its shell's reach a run one after the other: it saves all the same."""
    code = "import signal\nfrom engine.recovery.interrupt import Interrupt\n"
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it would be ignored
    code += "with Interrupt() as interrupt:\n"
    code += f"    signal.raise_signal(signal.{first}); signal.raise_signal(signal.SIGHUP)\n"
    code += "    print('saves', interrupt.exit_code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"saves {128 + signal.Signals[first]}\n")


def test_a_launcher_that_goes_is_no_second_signal(root):
    """Ctrl-C ends `accelerate launch` at once, and its process is told by SIGTERM; one more from a person counts."""
    rank = "import os, signal, sys, time; from engine.recovery.start import begin; begin(); "
    rank += "from engine.recovery.interrupt import Interrupt\n"
    rank += "with Interrupt() as interrupt:\n"
    rank += "    signal.raise_signal(signal.SIGINT); parent = os.getppid(); print('told', flush=True)\n"
    rank += "    while os.getppid() == parent: time.sleep(0.01)\n"
    rank += (
        "    time.sleep(0.2); print('saves', interrupt.exit_code, flush=True); signal.raise_signal(signal.SIGTERM)\n"
    )
    rank += "    print('still there')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {rank!r}], stdout=sys.stdout); "
    code += f"time.sleep({PATIENCE})"
    env = os.environ | {"ACCELERATE_MIXED_PRECISION": "no"}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=env, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == "told\n"
        launcher.kill()
        assert launcher.stdout.read() == "saves 130\n"
