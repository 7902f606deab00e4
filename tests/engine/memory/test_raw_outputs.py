"""The policy that keeps raw convolution outputs only: against real steps, and beside the plain layers."""

from functools import partial

import pytest

import archs
from engine.memory.cuda import CudaModel
from engine.memory.simulate import Simulator, Step
from engine.memory.validate import compare
from engine.recompute import Policy, apply_policy, clear_policy

RAW = Policy(rewrite="raw outputs")


def test_as_counted_on_real_tensors():
    row = compare("mobilenetv2", "fp32", "raw outputs", 4, 32)
    assert row["recompute"] == "raw outputs" and row["predicted_saved"] == row["counted_saved"]


def test_less_is_kept_for_the_same_arithmetic_and_the_network_is_given_back():
    simulator = Simulator(partial(archs.build, "mobilenetv2", 10), device=CudaModel())
    plain, raw, again = (simulator.record(Step(32, 10, "bf16", policy=policy)) for policy in (Policy(), RAW, Policy()))
    assert plain.saved(64) > 2 * raw.saved(64)
    assert raw.operators.flops.at(64).sum() == pytest.approx(plain.operators.flops.at(64).sum(), rel=0.01)
    assert again.saved(64) == plain.saved(64)


def test_the_route_is_undone():
    model = archs.build("resnet18", 10)
    apply_policy(model, RAW)
    assert {module.fused for module in model.modules() if hasattr(module, "fused")} == {"auto"}
    clear_policy(model)
    assert {module.fused for module in model.modules() if hasattr(module, "fused")} == {"off"}
