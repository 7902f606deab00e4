"""The memory suite on a GPU: a row counts its own network and no other, under its own cap on workspaces."""

import gc

import pytest
import torch

import archs
from engine.bench.suites.memory_rows import run_steps
from engine.bench.suites.memory_suite import measure
from engine.config import DataConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from engine.step.plan import Hardware, make_plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.slow
def test_a_network_before_is_not_counted():
    """Whatever Python's collector has got round to."""
    config = RunConfig(
        model=ModelConfig(arch="resnet18", compile="off"),
        data=DataConfig(image_size=32),
        optim=OptimConfig(batch_size=2),
        precision=PrecisionConfig("bf16"),
    )
    with torch.device("meta"):
        plan = make_plan(config, archs.build("resnet18", 10), Hardware.detect())
    gc.disable()
    try:
        (_, first), (_, second) = (run_steps(config, plan, 10, 1) for _ in range(2))
    finally:
        gc.enable()
    assert second == pytest.approx(first, rel=0.02)


@pytest.mark.slow
def test_each_budget_has_its_own_cap_on_workspaces(monkeypatch):
    monkeypatch.delenv("CUDNN_CONV_WSCAP_DBG", raising=False)
    settings = {"arch": "resnet18", "precision": "fp32", "batch_size": 4, "image_size": 32, "steps": 1}
    rows = [measure(settings | {"budget_gib": budget}, Hardware.detect(), 0.0)["chosen"] for budget in (8, 16)]
    assert rows[0]["workspace_cap_bytes"] != rows[1]["workspace_cap_bytes"]
    for row in rows:
        assert row["CUDNN_CONV_WSCAP_DBG"] == str(row["workspace_cap_bytes"] >> 20)
        assert row["measured_bytes"] > 0
