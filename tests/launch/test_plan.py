"""Plans from the entry points: a budget that splits the batch changes no loss, and what cannot be is refused."""

import json
import subprocess
import sys

import pytest


def test_a_run_in_less_memory_is_the_same_run(here, tiny, rows, tmp_path):
    """Without BatchNorm and dropout the micro-batches that a small budget forces change nothing."""
    flags = [*tiny, "--epochs", "1"]
    here(*flags, "--output", tmp_path / "whole")
    done = here(*flags, "--gpu-memory", "2.2MiB", "--output", tmp_path / "planned")
    plan = json.loads((tmp_path / "planned" / "plan.json").read_text())
    assert plan["accumulation"] > 1 or plan["policy"]["segments"]
    assert plan["predicted_peak_bytes"] <= 2.2 * 2**20 and plan["changes"] == []
    said = done.stdout
    assert "predicted peak" in said and "function: the same" in said and "not measured on a CPU" in said
    ours, theirs = rows(tmp_path / "planned", "step"), rows(tmp_path / "whole", "step")
    assert len(ours) == len(theirs)
    assert not (tmp_path / "planned" / "memory.png").exists()  # --log.no-plots
    for left, right in zip(ours, theirs, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-4)


def test_nothing_that_fits_is_exit_code_2(here, tiny, tmp_path):
    done = here(*tiny, "--gpu-memory", "100KiB", "--output", tmp_path / "run", code=2)
    assert "no plan in" in done.stderr and "would do" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_plan_script(root, tmp_path):
    """Seconds, one process, no GPU: a table, a plan and a picture; exit code 2 with what would do."""
    script = [sys.executable, "launch/plan.py", "--arch", "resnet18", "--output", str(tmp_path / "plan")]
    done = subprocess.run(script, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "chosen" in done.stdout
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {"plan.json", "memory.png"}
    refused = subprocess.run([*script, "--gpu-memory", "8"], cwd=root, capture_output=True, text=True)
    assert refused.returncode == 2 and "8GiB or 8MiB" in refused.stderr
