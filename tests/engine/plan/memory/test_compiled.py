"""Compiled runs: what the partitioned graphs keep, against torch.compile itself on this CPU."""

from functools import partial

import pytest
import torch
import torch._functorch.config
from torch import fx, nn
from torch._functorch.partitioners import get_default_op_list
from torch._subclasses.fake_tensor import FakeTensorMode

import archs
from engine.config import OptimConfig
from engine.plan.memory.compiled import unwritten_nodes
from engine.plan.memory.fake import fake_copy, on_meta
from engine.plan.memory.simulate import Simulator, Step, Stepper
from engine.plan.memory.trace import Category, Trace
from engine.plan.memory.tracker import Tracker
from engine.step.recompute import Policy

aten = torch.ops.aten
BATCH, CLASSES, SIZE = 4, 10, 32
LOSS = 2 * BATCH * CLASSES * 4 + 5 * 4
"""Bytes of the loss, which is not compiled: logits and their softmax, five scalars."""


class Small(nn.Sequential):
    """Two convolutions with BatchNorm, quick to trace; keeps both raw outputs and the layers' inputs in eager mode."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
        super().__init__(*layers, nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def build(arch: str) -> nn.Module:
    return archs.build(arch, CLASSES, image_size=SIZE) if arch else Small()


def kept_by_torch_compile(arch: str, budget: float) -> int:
    """Bytes that a compiled forward pass of the real network hands to its backward pass, beside what it was given."""
    torch._dynamo.reset()
    model = build(arch).to(memory_format=torch.channels_last).train()
    images = torch.zeros(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch._functorch.config.patch(activation_memory_budget=budget):
        compiled = torch.compile(model, backend="aot_eager_decomp_partition", dynamic=False)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = compiled(images)
    assert len(output) == BATCH
    given = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), images)}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in given)


def simulated(arch: str, budget: float) -> Trace:
    """A step of the network without memory, at the very batch: what is cheapest to keep depends on it."""
    step = Step(SIZE, CLASSES, cuda=False, policy=Policy(partition=budget))
    model = on_meta(partial(build, arch))
    with FakeTensorMode(allow_non_fake_inputs=True):
        return Stepper(fake_copy(model), step.optim).record(step, BATCH, Tracker())


def unrounded(trace: Trace) -> int:
    """Saved bytes without the allocator's rounding."""
    timeline = trace.timeline(BATCH)
    end = next(first for first, name in timeline.phases if name == "backward")
    return int(timeline.live[Category.SAVED][end - 1])


@pytest.mark.parametrize(
    ("arch", "budget"),
    [
        ("", 1.0),
        *(pytest.param("resnet18", budget, marks=pytest.mark.slow) for budget in (1.0, 0.5)),
        *(pytest.param("mobilenetv2", budget, marks=pytest.mark.slow) for budget in (1.0, 0.5)),
        pytest.param("vit_d6", 1.0, marks=pytest.mark.slow),
    ],
)
def test_saved_bytes_are_those_of_torch_compile(arch, budget):
    ours, theirs = unrounded(simulated(arch, budget)), kept_by_torch_compile(arch, budget)
    assert 0 <= ours - theirs <= LOSS


def test_a_compiled_step_keeps_less_and_has_all_categories():
    simulator = Simulator(Small)
    eager = simulator.record(Step(SIZE, CLASSES))
    compiled = simulator.record(Step(SIZE, CLASSES, policy=Policy(partition=1.0)))
    assert compiled.saved(128) < 0.9 * eager.saved(128)
    assert compiled.peak(128) < eager.peak(128)
    for category in (Category.PARAMETERS, Category.GRADIENTS, Category.OPTIMIZER, Category.INPUT):
        assert compiled.timeline(8).live[category].max() == eager.timeline(8).live[category].max()
    forward = {"convolution", "addmm", "mm"}
    done = [sum(name in forward for name in trace.operators.names) for trace in (eager, compiled)]
    assert done[0] <= done[1]
    assert simulator.record(Step(SIZE, CLASSES)).peak(128) == eager.peak(128)  # nothing of it is left


def test_two_passes_through_the_same_graphs():
    """SAM: a copy more, and the same kept in either pass."""
    once, twice = (
        Simulator(Small, OptimConfig(sam=rho)).record(
            Step(SIZE, CLASSES, optim=OptimConfig(sam=rho), policy=Policy(partition=1.0))
        )
        for rho in (0.0, 0.05)
    )
    copy = sum(tensor.nbytes for tensor in Small().state_dict().values())
    assert twice.saved(128) == once.saved(128)
    assert set(twice.timeline(128).live[Category.KEPT]) == {copy}
    unrounded = [trace.timeline(128).total - trace.timeline(128).live[Category.ROUNDING] for trace in (once, twice)]
    assert unrounded[1].max() - unrounded[0].max() - copy == 8  # the first pass's loss and hits
    assert twice.operators.flops.at(128).sum() == 2 * once.operators.flops.at(128).sum() > 0


def test_a_pointwise_result_that_only_fused_operators_read_is_not_written():
    graph = fx.Graph()
    images = graph.placeholder("images")
    doubled = graph.call_function(aten.mul.Tensor, (images, 2))
    shifted = graph.call_function(aten.add.Tensor, (doubled, 1))
    flat = graph.call_function(aten.view.default, (shifted, [8, 8]))
    product = graph.call_function(aten.mm.default, (flat, flat))
    active = graph.call_function(aten.relu.default, (product,))
    graph.output((graph.call_function(aten.add.Tensor, (active, 1)),))
    found = unwritten_nodes(graph, get_default_op_list())
    assert found == {doubled, active}  # `shifted` is read by the product, through a view
