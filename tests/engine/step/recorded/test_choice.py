"""When steps are recorded: what is refused with its rule, and auto only where it was measured to be faster."""

import json
from dataclasses import replace

import pytest

from engine.config import ConfigError, LogConfig, ModelConfig, OptimConfig, RunConfig
from engine.plan.workload import Workload
from engine.step.plan import Hardware, make_plan
from engine.step.recompute import Policy, by_block
from engine.step.recorded import choice
from engine.step.recorded.choice import measured_gain, obstacle, recordable
from tests.engine.conftest import TinyNet

GPU = Hardware("cuda", "NVIDIA H200", (9, 0), native_bf16=True)


def plan_of(asked="on", hardware=GPU, ranks=1, zero_stage=0, **config):
    given = RunConfig(model=ModelConfig(arch="resnet18", cuda_graph=asked, compile="off"), **config)
    return make_plan(given, TinyNet(), hardware, ranks, zero_stage)


def test_asked_for_it_is_done_and_told():
    plan = plan_of()
    assert plan.cuda_graph and "one CUDA graph a step" in plan.describe()
    assert not plan_of("off").cuda_graph and "CUDA graph" not in plan_of("off").describe()


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ({"hardware": Hardware("cpu", "CPU")}, "needs a GPU"),
        ({"ranks": 2}, "is for one GPU"),
        ({"ranks": 2, "zero_stage": 2}, "DeepSpeed"),
        ({"log": LogConfig(profile=True)}, "--profile"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_the_rule_and_auto_goes_without(monkeypatch, refused, words):
    monkeypatch.setattr(choice, "measured_gain", lambda gpu, arch: 9.0)
    with pytest.raises(ConfigError, match=f"--cuda-graph on.*{words}"):
        plan_of(**refused)
    assert not plan_of("auto", **refused).cuda_graph and plan_of("auto").cuda_graph


def test_rules_of_the_optimizer_and_of_the_policy():
    rmsprop = RunConfig(optim=OptimConfig(optimizer="rmsprop"))
    assert "rmsprop" in obstacle(rmsprop, "cuda", "fp16", 1, 0) and obstacle(rmsprop, "cuda", "bf16", 1, 0) is None
    assert obstacle(RunConfig(), "cuda", "fp16", 1, 0) is None
    lamb = RunConfig(optim=OptimConfig(optimizer="lamb"))
    assert "count of steps on the host" in obstacle(lamb, "cuda", "bf16", 1, 0)
    assert "recompute" in obstacle(RunConfig(), "cuda", "fp32", 1, 0, by_block(3))
    for policy, can in (
        (Policy(), True),
        (Policy(partition=0.5), True),
        (Policy(rewrite="raw outputs"), True),
        (by_block(3), False),
        (Policy(offload=True), False),
    ):
        assert recordable(policy) == can


def test_auto_records_where_it_was_measured_to_be_faster(tmp_path, monkeypatch):
    (tmp_path / "h200").mkdir()
    rows = {
        arch: {"status": "measured", "figures": {"median": {"HCR in one graph": rate, "HCR launched": 100.0}}}
        for arch, rate in (("resnet18", 130.0), ("resnet50", 101.0))
    }
    rows["vgg11"] = {"status": "measured", "figures": {"median": {"HCR launched": 100.0}}}
    rows["nin"] = {"status": "error", "error": "no"}
    path = tmp_path / "h200" / "graphs.json"
    path.write_text(json.dumps({"rows": rows}))
    found = {arch: measured_gain("NVIDIA H200", arch, tmp_path) for arch in (*rows, "xception")}
    assert found == {"resnet18": 1.3, "resnet50": 1.01, "vgg11": 0, "nin": 0, "xception": 0}
    assert measured_gain("NVIDIA A100", "resnet18", tmp_path) == 0
    path.write_text('{"rows": {"resnet18":')
    assert measured_gain("NVIDIA H200", "resnet18", tmp_path) == 0
    monkeypatch.setattr(choice, "measured_gain", lambda gpu, arch: found[arch])
    assert plan_of("auto").cuda_graph
    monkeypatch.setitem(found, "resnet18", 1.01)
    assert not plan_of("auto").cuda_graph


def test_the_plan_knows_the_recorded_batch_and_the_second_workspaces():
    load = Workload("tiny", TinyNet, 32, 2, 64, recorded=True)
    assert load.recording("bf16", Policy()) == (64 * (3 * 32 * 32 * 2 + 12), load.device.cublas)
    assert load.recording("fp32", Policy())[0] == 64 * (3 * 32 * 32 * 4 + 12)
    assert load.recording("bf16", by_block(1)) == (0, 0) == replace(load, recorded=False).recording("bf16", Policy())
