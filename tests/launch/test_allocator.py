"""A run on a GPU has the allocator that it was planned for, and keeps what it measured of it."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tyro", reason="tyro is not installed: there is no command line")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

SHOW = """
import runpy, sys, torch
sys.argv = ["launch/train.py", *sys.argv[1:]]
try:
    runpy.run_path("launch/train.py", run_name="__main__")
finally:
    print("segments that expand:", {one["is_expandable"] for one in torch.cuda.memory_snapshot()})
"""


@pytest.mark.parametrize("given", [None, "expandable_segments:False"], ids=["nothing chosen", "chosen"])
def test_segments_expand_where_nothing_was_chosen(given, root, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    environment |= {"PYTORCH_ALLOC_CONF": given} if given else {}
    flags = ["--arch", "mobilenetv1_025", "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--no-compile"]
    flags += ["--data.limit", "16", "--data.backend", "torchvision", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *flags], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"segments that expand: {{{given is None}}}" in done.stdout
    assert ("allocator: expandable segments" in done.stdout) == (given is None)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    memory = next(row for row in rows if row.get("event") == "memory")
    assert 0 < memory["predicted_bytes"] <= memory["predicted_reserved_bytes"]
    assert 0 < memory["measured_bytes"] <= memory["measured_reserved_bytes"]
