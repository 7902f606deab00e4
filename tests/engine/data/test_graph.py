"""The graph as it is defined: what needs a GPU to run can still be held to the graph that was tested on a CPU."""

import numpy as np
import pytest
import torch

from engine.data.graph.finishing import Finishing, FinishingThreads
from engine.data.graph.pipeline import IMAGES, MIRROR, SHAPE, START, GraphSettings, build_graph, define_graph
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


@pytest.mark.parametrize("raw", [True, False])
def test_what_follows_the_cut_outside_is_what_the_graph_would_do(photo, raw):
    """To what the resizes of DALI and torch differ by: tenths of a grey level in the mean, a few at most."""
    wanted = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 0.875, "bilinear", 32)
    images = [np.asarray(photo(seed, *shape)) for seed, shape in enumerate(((60, 90), (200, 120), (33, 40), (32, 32)))]
    start = np.array([(3, 5), (10, 0), (0, 0), (0, 0)], np.int32)
    shape = np.array([(50, 80), (150, 100), (20, 25), (32, 32)], np.int32)
    mirror = np.array([0, 1, 1, 0], np.int32)
    made = []
    for windows in (False, True):
        graph = build_graph(
            GraphSettings(False, True, wanted, False, torch.device("cpu"), 1, raw=raw, windows=windows), 4, 1
        )
        graph.feed_input(IMAGES, images, layout="HWC")
        graph.feed_input(START, start)
        graph.feed_input(SHAPE, shape)
        if not windows:
            graph.feed_input(MIRROR, mirror)
        graph.schedule_run()
        made.append(graph.outputs()[0])
    whole = np.asarray(made[0].as_tensor())
    threads = FinishingThreads(Finishing(wanted, raw), 2)
    finished = threads([np.asarray(one) for one in made[1]], mirror.astype(bool)).permute(0, 2, 3, 1).numpy()
    threads.close()
    assert whole.dtype == finished.dtype == (np.uint8 if raw else np.float32) and whole.shape == finished.shape
    levels = np.float32(1) if raw else 255 * np.array(wanted.std, np.float32)
    difference = np.abs(whole.astype(np.float32) - finished) * levels
    assert difference.mean() < 0.3 and difference.max() < 4
    assert difference[3].max() < 1e-3, "as it is: nothing is resized"
