"""Every network as an ONNX file and as a .pt2: the logits are ours, for any number of pictures of any size."""

import json
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import archs
from engine.config import ConfigError
from engine.data.preprocessing import Preprocessing
from engine.runs.door import CannotWrite
from engine.step.finetune import last_layer
from engine.use.export import graph_files
from engine.use.export.graph import RawGraph
from tests.waiting import PATIENCE

QUICK = ("squeezenet1_1", "gmlp_d6")
"""One of convolutions and one of tokens in the default run, at small sizes; the others are marked slow."""
SIDES = {"inceptionv3": 75, "inceptionv3_fullres": 13, "alexnet": 63, "alexnet_owt": 63, "nin": 39}
SIDES |= {"vit_b32": 64, "vit_d6": 64}
LOGITS = 20.0
"""About the largest of a trained network; a head of 4,096 random weights sums up to more than 1e-4 resolves."""
FACTS = {"network": "x", "classes": '["a", "b"]'}


def raw(name: str, side: int = 0) -> RawGraph:
    """The network with weights in which the picture counts, behind a preparation that leaves its own size alone."""
    side = side or SIDES.get(name, 32)
    torch.manual_seed(0)
    model = archs.build(name, 10, image_size=side).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        largest = model(torch.randn(2, 3, side, side)).abs().max().item()
        for parameter in last_layer(model).parameters():
            parameter.mul_(min(1.0, LOGITS / largest))
    return RawGraph(model, Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 1.0, "bicubic", side))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in archs.names()]
)
def test_every_network_answers_in_both_formats_as_here(name, tmp_path, record_property):
    """At the network's own size nothing is resized: the tensor that the network sees is the same to the last bit."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    graph = raw(name)
    side = graph.prepare.height
    program = graph_files.trace(graph)
    images = [torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8) for count in (3, 1)]
    with torch.no_grad():
        expected = [graph(one)[1] for one in images]
        found = [program.module()(one)[1] for one in images]
    graph_files.write_onnx(tmp_path / "x.onnx", graph, FACTS, program=program)
    session = graph_files.open_onnx(tmp_path / "x.onnx")
    for one, ours, theirs in zip(images, expected, found, strict=True):
        assert torch.isfinite(ours).all()
        logits = session.run(["logits"], {"images": one.numpy()})[0]
        apart = {"torch.export": (ours - theirs).abs().max().item(), "onnx": np.abs(logits - ours.numpy()).max().item()}
        for kind, most in apart.items():  # kept by --junit-xml
            record_property(f"{kind}, {len(one)} pictures", most)
            assert most <= 1e-4, kind


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory):
    """A network with a true crop and resize in both formats, and what it answers to pictures of several sizes."""
    graph = raw("squeezenet1_1")
    graph.prepare = type(graph.prepare)(Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 0.875, "bicubic", 32))
    folder = tmp_path_factory.mktemp("graphs")
    graph_files.write_torch_export(folder / "x.pt2", graph, FACTS)
    generator = np.random.default_rng(1)
    sizes = ((2, 40, 60), (1, 90, 33), (3, 300, 200), (1, 1, 1))
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    with torch.no_grad():
        return folder, graph, images, [graph(torch.from_numpy(one))[1].numpy() for one in images]


def test_torch_export_takes_any_size_and_says_what_it_is(squeezed):
    folder, _, images, expected = squeezed
    told = {graph_files.METADATA: ""}
    module = torch.export.load(folder / "x.pt2", extra_files=told).module()
    assert json.loads(told[graph_files.METADATA]) == FACTS
    for one, logits in zip(images, expected, strict=True):
        np.testing.assert_allclose(module(torch.from_numpy(one))[1].detach().numpy(), logits, atol=1e-4)


def test_a_full_disk_is_told_and_leaves_nothing(squeezed, tmp_path):
    """F8: torch's own archive, written there, ends the process by abort()."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"x\.pt2 cannot be written: files may not become that large"):
            graph_files.write_torch_export(tmp_path / "x.pt2", squeezed[1], FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("half", [False, True])
def test_onnx_takes_any_size_and_says_what_it_is(squeezed, tmp_path, half):
    """In a process that has neither torch nor this project: onnxruntime alone."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs ONNX")
    _, graph, images, expected = squeezed
    if half:
        graph = RawGraph(raw("squeezenet1_1").network, replace(PIXELS), half=True)
    graph_files.write_onnx(tmp_path / "x.onnx", graph, FACTS, opset=18 if half else 20)
    np.savez(tmp_path / "images.npz", *images)
    code = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('x.onnx', providers=['CPUExecutionProvider'])\n"
        "images = numpy.load('images.npz')\n"
        "found = [session.run(None, {'images': images[name]}) for name in images.files]\n"
        "assert not {'torch', 'engine', 'archs'} & sys.modules.keys()\n"
        "assert session.get_modelmeta().custom_metadata_map['classes'] == '[\"a\", \"b\"]'\n"
        "numpy.savez('found.npz', *[array for pair in found for array in pair])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=PATIENCE)
    found = list(np.load(tmp_path / "found.npz").values())
    for logits, shares, theirs in zip(expected, found[::2], found[1::2], strict=True):
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(theirs, logits, atol=0.02 * np.abs(logits).max() if half else 1e-4)
    if half:
        assert (tmp_path / "x.onnx").stat().st_size < 0.6 * 4 * sum(p.numel() for p in graph.parameters())


PIXELS = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 0.875, "bicubic", 32)


def test_what_is_not_installed_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(ConfigError, match=r"needs onnxscript, which the extra `export` has: pip install"):
        graph_files.write_onnx(tmp_path / "x.onnx", raw("squeezenet1_1"), FACTS)
    assert not list(tmp_path.iterdir())


def test_a_network_that_depends_on_its_pixels_is_told(tmp_path):
    class Choosing(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))

    graph = RawGraph(Choosing(), PIXELS)
    with pytest.raises(ConfigError, match=r"torch\.export cannot trace this network: "):
        graph_files.write_torch_export(tmp_path / "x.pt2", graph, FACTS)
    assert not list(tmp_path.iterdir())
