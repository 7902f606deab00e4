"""`launch/bench.py --report` from end to end on an emulated GPU: its figures mean nothing, its steps and pages do."""

import json
import sys

import pytest

from tests.launch.conftest import environment, run_to_the_end

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


def test_first_contact_from_end_to_end(root, tmp_path):
    """Kernels are no-ops, so checks of numbers fail and say so; whatever happens, each step has its line and file."""
    small = ["--arch", "resnet18", "--batch-size", "4", "--image-size", "32", "--rounds", "3"]
    command = [sys.executable, "launch/bench.py", "--report", "--budget", "60s", *small, "--output", str(tmp_path)]
    done = run_to_the_end(command, root, environment(EMULATED_GPU_SKIP_KERNELS="1", EMULATED_GPU_SKIP_ABOVE="64KiB"))
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert folder.name == "h100-80gb-hbm3" and (folder / "report.html").is_file()
    steps = json.loads((folder / "contact.json").read_text())["steps"]
    assert steps and done.stdout.splitlines()[-1] == f"page {folder / 'report.html'}"
