"""Whole runs on a GPU, each way of training once: they end, learn from every image, and leave finite weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("tyro", reason="tyro is not installed: there is no command line")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

WAYS = {
    "fp32": ("--precision", "fp32"),
    "bf16, compiled": ("--precision", "bf16", "--compile"),
    "fp16": ("--precision", "fp16"),
    "fp16, compiled": ("--precision", "fp16", "--compile"),
    "blocks": ("--recompute", "block"),
    "blocks, compiled": ("--recompute", "block", "--compile"),
    "segments": ("--recompute", "segments", "--gpu-memory", "4GiB"),
    "nested": ("--recompute", "nested", "--gpu-memory", "4GiB"),
    "offload": ("--memory.offload", "on", "--gpu-memory", "4GiB"),
    "micro-batches": ("--parallel.micro-batch-size", "2"),
    "average": ("--optim.ema", "0.9"),
    "average, fp16": ("--optim.ema", "0.9", "--precision", "fp16"),
    "sharpness-aware": ("--optim.sam", "0.05"),
    "clipped, fp16": ("--optim.clip-norm", "1", "--precision", "fp16"),
    "images that grow": (
        "--data.progressive-from",
        "24",
        "--data.progressive-stages",
        "2",
        "--epochs",
        "2",
        "--compile",
    ),
    "plots": ("--log.plots", "--log.monitor-interval", "0.1"),
}
SHORT = ("fp16",)


def events(run: Path) -> dict[str, dict]:
    """The last row of each event."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["event"]: row for row in rows if row["kind"] == "event"}


@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way in SHORT else pytest.mark.slow) for way in WAYS])
def test_a_run(run_here, tmp_path, way):
    torch._dynamo.reset()
    compiled = [] if "--compile" in WAYS[way] else ["--no-compile"]
    run_here(*compiled, *WAYS[way])
    found = events(tmp_path / "run")
    assert found["start"]["device"] == torch.cuda.get_device_name(0) and "finished" in found
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights and all(tensor.isfinite().all() for tensor in weights.values())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["device"] == "cuda" and plan["compile"] == ("--compile" in WAYS[way])
    if "--recompute" in WAYS[way]:
        assert plan["policy"]["segments"] and plan["policy"]["nested"] == (way == "nested")
    assert plan["policy"]["offload"] == (way == "offload")


@pytest.mark.slow
def test_a_profile_says_where_the_step_goes(run_here, tmp_path):
    run_here("--profile", "--epochs", "4", "--no-compile")
    text = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert len(text.strip().splitlines()) == 10 and text.startswith("10 steps of ")


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated(run_here, resume, tmp_path):
    from engine.use.evaluation import EvaluateConfig, run_evaluation

    run_here("--no-compile", "--precision", "fp16")
    resume("--epochs", "2")
    assert events(tmp_path / "run")["resume"]["step"] == 4
    found = run_evaluation(EvaluateConfig(tmp_path / "run", backend="auto"))
    assert found["count"] == 8
