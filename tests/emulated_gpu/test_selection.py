"""A short selection of the GPU's tests as part of every test run, on the emulated GPU in a process of its own."""

import subprocess
import sys

import pytest

NO_GPU = 69  # run.py's
SELECTION = "(gpu or emulated) and not real_gpu and not slow"


def test_the_short_selection(root):
    command = [sys.executable, "tests/emulated_gpu/run.py", sys.executable, "-m", "pytest", "-q", "-m", SELECTION]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--durations=10"], cwd=root, capture_output=True, text=True
    )
    if done.returncode == NO_GPU:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
