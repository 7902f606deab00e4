"""The real kernels on the CPU: the accuracy tests again, in a process where Triton interprets them.

The variable must be set before a kernel is decorated, hence the process.
"""

import os
import subprocess
import sys

import pytest


def run_interpreted(root, marks: str) -> str:
    """Run tests/kernels/accuracy under Triton's interpreter; returns pytest's last lines."""
    command = [sys.executable, "-m", "pytest", "tests/kernels/accuracy", "-q", "-m", marks, "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_kernels_against_float64(root):
    assert " passed" in run_interpreted(root, "not gpu and not slow")


@pytest.mark.slow
def test_kernels_on_more_shapes_against_float64(root):
    assert " passed" in run_interpreted(root, "slow and not gpu")
