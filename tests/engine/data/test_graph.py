"""The graph as it is defined: what needs a GPU to run can still be held to the graph that was tested on a CPU."""

import pytest
import torch

from engine.data.graph.pipeline import GraphSettings, define_graph
from engine.data.preprocessing import Preprocessing

UNCHANGED = Preprocessing((0, 0, 0), (1, 1, 1), 0.875, "bilinear", 32)


def operators(device: str, train: bool, encoded: bool) -> list[tuple[str, str]]:
    """(operator, device of its output) in the order of definition."""
    settings = GraphSettings(encoded, train, UNCHANGED, False, torch.device(device), threads=1)
    graph = define_graph(settings, batch_size=4, depth=2)
    if not hasattr(graph, "_build_graph"):
        pytest.skip("this DALI keeps its graph elsewhere")
    graph._build_graph()
    return [(out.name.rstrip("0123456789_"), out.device) for operator in graph._ops for out in operator.outputs]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("encoded", [True, False])
def test_gpu_graph_is_the_cpu_graph_on_another_device(train, encoded):
    cpu, gpu = (operators(device, train, encoded) for device in ("cpu", "cuda:0"))
    names = [[name for name, _ in one] for one in (cpu, gpu)]
    if train and encoded:  # a CPU decodes the window alone
        assert sorted(names[1]) == sorted(
            ["__Image", "__Slice", *(each for each in names[0] if each != "__ImageSlice")]
        )
    else:
        assert names[0] == names[1]
    assert {place for _, place in cpu} == {"cpu"}
    pixels = {name for name, place in gpu if place == "gpu"}
    assert {"__Resize", "__CropMirrorNormalize"} <= pixels
    assert not any(place == "gpu" for name, place in gpu if "Subscript" in name or not name.startswith("_"))


def test_files_are_decoded_on_the_gpu():
    """Whole, and cut there: windows are what nvImageCodec 0.9 fails on, and not what the hardware engine decodes."""
    training = operators("cuda:0", train=True, encoded=True)
    assert training.index(("__Image", "gpu")) < training.index(("__Slice", "gpu")) < training.index(("__Resize", "gpu"))
    assert ("__Image", "gpu") in operators("cuda:0", train=False, encoded=True)
