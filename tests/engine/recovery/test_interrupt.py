"""Signals: the first is remembered, the second is obeyed at once, and what was there before comes back."""

import signal
import subprocess
import sys

import pytest

from engine.recovery.interrupt import Interrupt


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_first_signal_is_remembered(number, code, capsys):
    found = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored
    try:
        with Interrupt() as interrupt:
            assert interrupt.exit_code == 0
            signal.raise_signal(number)
            assert interrupt.exit_code == code
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, found)
    assert f"{number.name}: finishing this step" in capsys.readouterr().err


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
