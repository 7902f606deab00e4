"""Who convolves on a GPU, under torch.compile: one graph, whoever it is. A question to the driver would break it."""

import pytest
import torch

import archs
from archs.fused import Fusable, set_fused
from engine.bench.instrument.kernel_layers import layers_of
from engine.step.recompute import Policy, apply_policy
from kernels import dispatch

ARCH, SIZE = "mobilenetv2", 32

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def graphs_of(model: torch.nn.Module) -> list[torch.fx.GraphModule]:
    """The graphs that Dynamo makes of a training forward pass, or its error where there would be two; nothing runs."""
    found = []

    def keep(graph: torch.fx.GraphModule, _inputs):
        found.append(graph)
        results = graph.graph.output_node().args[0]
        shapes = [result.meta["example_value"].shape for result in results]
        return lambda *_: [torch.zeros(shape, device="cuda") for shape in shapes]

    torch._dynamo.reset()
    model.compile(fullgraph=True, backend=keep)
    with torch.autocast("cuda", torch.bfloat16):
        model(torch.randn(4, 3, SIZE, SIZE, device="cuda").contiguous(memory_format=torch.channels_last))
    return found


def paths(graph: torch.fx.GraphModule) -> list[str]:
    """The path of each of this package's convolutions, in order."""
    return [node.args[-1] for node in graph.graph.nodes if node.target is torch.ops.hcr.conv.default]


@pytest.fixture
def table(monkeypatch) -> dict[str, float]:
    """As if every second layer had been measured to be faster through its kernel, the others slower."""
    layers = [layer.key(torch.bfloat16) for layer in layers_of(ARCH, SIZE)]
    made = {layer: 1.5 if place % 2 else 0.5 for place, layer in enumerate(layers)}
    monkeypatch.setattr(dispatch, "measured", lambda gpu: made)
    monkeypatch.setattr(dispatch, "networks_measured", lambda gpu: {ARCH: 1.2, "resnet18": 0.4})
    return made


@pytest.mark.parametrize("switched", ["fused auto", pytest.param("raw outputs", marks=pytest.mark.slow)])
def test_a_measured_table_leaves_one_graph(table, switched):
    model = archs.build(ARCH, num_classes=5).to("cuda").to(memory_format=torch.channels_last).train()
    if switched == "fused auto":
        assert not set_fused(model, "auto", "cuda") and not set_fused(model, "auto", "cuda", "resnet18")
        assert set_fused(model, "auto", "cuda", ARCH)
    else:
        apply_policy(model, Policy(rewrite="raw outputs"))
    (graph,) = graphs_of(model)
    taken = paths(graph)
    assert 10 < sum(path != "aten" for path in taken) < len(taken) - 10
    assert {module.taken for module in model.modules() if isinstance(module, Fusable)} == {dispatch.worth_it(table)}
