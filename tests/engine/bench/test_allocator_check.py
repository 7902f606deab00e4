"""Plans against the real caching allocator: what the check says, and that it says so of a small network."""

import json
import os
import subprocess
import sys

import pytest

from engine.bench.allocator_check import FIRST, jobs, summary


def budget(fits: bool = True, cost: float = 1.0, ratio: float | None = 1.0) -> dict:
    return {"claims": True, "fits": fits, "cost_over_real_search": cost, "predicted_over_measured": ratio}


def test_a_summary_counts_what_claims_and_runs():
    rows = [
        {"peaks": {"none": {"predicted_over_measured": 0.99}}, "budgets": {"8": budget(), "12": budget(cost=1.1)}},
        {"peaks": {}, "budgets": {"8": {"claims": False}, "12": budget(False, ratio=None)}},
    ]
    found = summary(rows)
    assert (found["rows"], found["claims"], found["ran"], found["ratios"]) == (2, 3, 2, 3)
    assert (found["lowest_ratio"], found["highest_ratio"]) == (0.99, 1.0)
    assert found["mean_cost_over_real_search"] == pytest.approx(3.1 / 3, abs=1e-4)


def test_networks_that_ran_out_come_first():
    order = list(jobs([], ["bf16", "fp32"]))
    assert {name for name, _ in order[: len(FIRST)]} == set(FIRST) and len(order) == len(set(order)) == 140
    assert list(jobs(["nin"], ["fp32"])) == [("nin", "fp32")]


@pytest.mark.emulated
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_network_s_plans_run_in_their_budgets(precision, root):
    """At full size, arithmetic left out: requested bytes are predicted, and every plan that claims to fit does."""
    command = [sys.executable, "-m", "engine.bench.allocator_check", "resnet18", "--precision", precision, "--row"]
    environment = {**os.environ, "EMULATED_GPU_SKIP_ABOVE": "64KiB", "EMULATED_GPU_CONTEXT": "448MiB"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = summary([json.loads(done.stdout.splitlines()[-1])])
    assert found["ran"] == found["claims"] == 4
    assert 0.999 <= found["lowest_ratio"] <= found["highest_ratio"] <= 1.001
