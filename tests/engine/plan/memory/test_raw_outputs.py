"""The policy that keeps raw convolution outputs only: against real steps, and beside the plain layers."""

from functools import partial

import pytest
import torch
from torch import nn

import archs
from archs.fused import Fusable
from archs.layers import InvertedResidual
from engine.bench.memory_simulator import compare
from engine.plan.memory import fused
from engine.plan.memory.cuda import CudaModel
from engine.plan.memory.simulate import Simulator, Step, simulate
from engine.plan.memory.trace import Category
from engine.step.recompute import Policy, apply_policy, clear_policy

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


class Excited(nn.Module):
    """A convolution, a block with an excitation, and a classifier; `route` is what Fusable takes."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.block = InvertedResidual(8, 48, 24, squeezed=4, act=nn.SiLU)
        self.head = nn.Linear(24, 10)
        for module in self.modules():
            if isinstance(module, Fusable):
                module.fused = route

    def forward(self, images):
        return self.head(self.block(self.stem(images)).mean((2, 3)))


@pytest.mark.parametrize(("route", "operator"), [("auto", "squeeze_excite"), ("on", "excited_pointwise")])
def test_an_excitation_counts_as_much_as_its_plain_layers(route, operator):
    """As an operator of its own beside cuDNN, and in the projection's load through the kernels."""
    step = Step(32, 10, cuda=False)
    plain, own = (simulate(partial(Excited, way), step, CudaModel()) for way in ("off", route))
    assert own.operators.names.count(operator) == own.operators.names.count(f"{operator}_backward") == 1
    assert own.operators.flops.at(8).sum() == plain.operators.flops.at(8).sum() > 0


def test_the_gradient_behind_the_gate_is_in_memory():
    images, weight = torch.empty(4, 8, 5, 5, device="meta"), torch.empty(2, 8, 1, 1, device="meta")
    extras = list(CudaModel().extras(fused.EXCITED_BACKWARD, (None, None, None, images, weight), []))
    assert [(extra.nbytes, extra.category, extra.like) for extra in extras] == [(3200, Category.TRANSIENT, None)]


@pytest.mark.parametrize(
    ("channels", "outputs", "opened", "dtype", "forward", "backward"),
    [
        (256, 320, True, torch.bfloat16, ["x"], ["y", "x"]),
        (64, 384, False, torch.bfloat16, [], ["y"]),
        (144, 24, True, torch.bfloat16, [], ["y", "x"]),
        (24, 144, False, torch.bfloat16, [], []),
        (256, 320, True, torch.float32, [], []),
    ],
)
def test_operands_of_the_librarys_products_are_in_memory(channels, outputs, opened, dtype, forward, backward):
    """Beside the results of a pointwise layer: the opened input, and the gradient through the statistics."""
    sizes = {"x": channels, "y": outputs}
    x, y = (torch.empty(4, n, 5, 5, dtype=dtype, device="meta") for n in sizes.values())
    weight, vector = torch.empty(outputs, channels, 1, 1, device="meta"), torch.empty(1, device="meta")
    prologue = [vector if opened else None] * 3 + ["identity", 0.01]
    cut = [[1, 1], [0, 0], [1, 1], 1, 1]
    model = CudaModel()
    ways = {
        "forward": (fused.FORWARD, (x, weight, *prologue, *cut, True, "pointwise"), [y], forward),
        "backward": (
            fused.BACKWARD,
            (y, vector, vector, x, weight, y, vector, *prologue, *cut, "pointwise", True, True),
            [x],
            backward,
        ),
    }
    for function, arguments, results, wanted in ways.values():
        extras = list(model.extras(function, arguments, results))
        assert [extra.nbytes for extra in extras] == [4 * 25 * dtype.itemsize * sizes[name] for name in wanted]
        assert {extra.category for extra in extras} <= {Category.TRANSIENT}


def test_the_route_is_undone():
    model = archs.build("resnet18", 10)
    apply_policy(model, RAW)
    assert {module.fused for module in model.modules() if hasattr(module, "fused")} == {"auto"}
    clear_policy(model)
    assert {module.fused for module in model.modules() if hasattr(module, "fused")} == {"off"}
