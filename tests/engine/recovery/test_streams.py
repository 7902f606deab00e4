"""Standard output and error that take nothing any more: a run goes on, and saves when it is told to stop."""

import os
import pty
import subprocess
import sys

import pytest

from tests.waiting import PATIENCE

PROGRAM = """
import os, signal, sys
from engine.recovery.start import begin, in_words
begin(unheard=True)
from engine.recovery.interrupt import Interrupt
def main():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    with Interrupt() as interrupt:
        print('begun', flush=True)
        sys.stdin.readline()
        for number in range(3):
            print('step', number, flush=True)
            print('bar', file=sys.stderr, flush=True)
        signal.raise_signal(signal.SIGHUP)
        print('stopped')
    with open(sys.argv[1], 'w') as file:
        file.write(f'saved, {interrupt.exit_code}')
    return 0
sys.exit(in_words(main))
"""


def ended(process: subprocess.Popen, saved) -> tuple[int, str]:
    """Let it go on: (exit code, what it saved)."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    code = process.wait(PATIENCE)
    return code, saved.read_text() if saved.exists() else "nothing"


@pytest.mark.parametrize("unbuffered", [(), ("-u",)], ids=["", "-u"])
def test_a_terminal_that_was_closed(root, tmp_path, unbuffered):
    ours, theirs = pty.openpty()
    command = [sys.executable, *unbuffered, "-c", PROGRAM, str(tmp_path / "saved")]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"begun")
    os.close(ours)
    assert ended(process, tmp_path / "saved") == (0, "saved, 129")


def test_a_reader_that_has_gone(root, tmp_path):
    """`2>&1 | tee`, which Ctrl-C ends before the run has saved."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")]
    process = subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    process.stdout.close()
    assert ended(process, tmp_path / "saved") == (0, "saved, 129")


def test_a_full_disk_is_told_where_that_can_be(root, tmp_path):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")]
        process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=full, stderr=subprocess.PIPE)
        assert ended(process, tmp_path / "saved") == (0, "saved, 129")
    assert process.stderr is not None
    told = process.stderr.read().decode()
    process.stderr.close()
    assert told.startswith("bar\nbar\nbar\n\nSIGHUP: finishing") and "Traceback" not in told
    assert told.endswith("note: standard output was not written to its end: the disk is full\n")
