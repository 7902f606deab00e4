"""The GPU report's suite in a dry run: rows that dispatch can read, and every shape found."""

import json
import sys

import pytest
import torch

from engine.bench.instrument.kernel_layers import Layer, layers_of
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.suites import kernel_checks, layer_checks
from engine.bench.suites.kernel_rates import kernel_rates, layer_row, rows
from kernels.dispatch import speedups
from tests.waiting import PATIENCE


def test_layers_are_the_networks_own():
    found = layers_of("mobilenetv1", 224)
    assert Layer(32, 32, 112, 112, 3, 1, 32, "relu6") in found
    assert Layer(512, 1024, 7, 7, 1, 1, 1, "relu6") in found
    assert len(found) == 18  # 9 depthwise shapes of 13, 9 pointwise of 13: the five middle blocks are one
    assert {layer.size for layer in layers_of("efficientnet_b0", 224)} == {1, 3, 5}


def test_projections_are_timed_with_their_excitation():
    layers = [layer for layer in layers_of("efficientnet_b0", 224) if layer.squeezed]
    assert Layer(96, 24, 56, 56, 1, 1, 1, "silu", 4) in layers and len(layers) == 12  # of 16 blocks, each shape once
    layer = Layer(8, 6, 5, 4, 1, 1, 1, "silu", 2)
    row = layer_row(layer, 2, torch.float32, torch.device("cpu"), 1, 1)
    assert row["layer"] == "excited 8>6 5x4 k1 s1 g1 float32"
    assert row["bytes"] == 4 * 2 * 20 * (8 * 8 + 5 * 6)
    assert row["kernel_seconds"] > 0 and row["library_seconds"] > 0


def test_rows_for_the_report():
    made = rows(Options(dry_run=True))
    assert [row.key for row in made] == [
        "right depthwise 8>8 16x16 k3 s1 g8 bfloat16",
        "right pointwise 32>64 4x4 k1 s1 g1 bfloat16",
        "determinism",
        "depthwise 8>8 16x16 k3 s1 g8 bfloat16",
        "pointwise 8>16 16x16 k1 s1 g1 bfloat16",
        "step mobilenetv1_025",
        "memcheck",
    ]
    assert made[0].measure(0.0)["summary"].startswith("right: worst ")
    figures = made[3].measure(0.0)
    assert figures["kernel_seconds"] > 0 and not figures["in_graphs"]
    with pytest.raises(NotAvailable, match="on the CPU"):
        made[-1].measure(float("inf"))


def test_a_kernel_that_is_wrong_is_caught_before_it_is_timed(monkeypatch):
    layer = Layer(8, 8, 6, 6, 3, 1, 8, "relu6")
    right = layer_checks.layer_results

    def wrong(layer, x, weight, vectors, path):
        output, *gradients = right(layer, x, weight, vectors, path)
        return output if path == "aten" else output * 1.05, *gradients

    monkeypatch.setattr(layer_checks, "layer_results", wrong)
    with pytest.raises(RuntimeError, match=r"output is off by 0\.05 of its norm"):
        layer_checks.layer_check(layer, 2, torch.bfloat16, torch.device("cpu"), 0.0)


def test_the_same_bits_twice():
    found = kernel_checks.same_bits(torch.device("cpu"))
    assert found["results"] > 100 and found["differing"] == []


def test_a_result_that_differs_is_named(monkeypatch):
    drawn = iter([torch.zeros(2), torch.tensor([0.0, -0.0])])
    monkeypatch.setattr(kernel_checks, "exercise", lambda *_: [("pointwise float32 0", next(drawn))])
    assert kernel_checks.same_bits(torch.device("cpu"))["differing"] == ["pointwise float32 0"]


SANITIZER = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
"$@" || exit 1
echo "========= ERROR SUMMARY: {errors} errors"
exit {code}
"""


def put_sanitizer(folder, errors, code):
    """A stand-in that runs the program it is given and tells so many errors."""
    tool = folder / "compute-sanitizer"
    tool.write_text(SANITIZER.format(python=sys.executable, errors=errors, code=code))
    tool.chmod(0o755)


def test_memcheck_runs_every_operator(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(kernel_checks, "MOST_SECONDS", PATIENCE)
    put_sanitizer(tmp_path, 0, 0)
    assert kernel_checks.memory_check(torch.device("cpu"))["errors"] == 0


def test_memcheck_tells_of_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "compute-sanitizer").write_text("#!/bin/sh\necho ERROR SUMMARY: 3 errors\nexit 86\n")
    (tmp_path / "compute-sanitizer").chmod(0o755)
    with pytest.raises(RuntimeError, match=r"86.*3 errors"):
        kernel_checks.memory_check(torch.device("cpu"))


def test_memcheck_without_the_tool_is_not_available(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernel_checks, "SANITIZER", "no-such-sanitizer")
    with pytest.raises(NotAvailable, match="CUDA toolkit"):
        kernel_checks.memory_check(torch.device("cpu"))
    home = tmp_path / "cuda" / "bin"
    home.mkdir(parents=True)
    monkeypatch.setattr(kernel_checks, "SANITIZER", "compute-sanitizer")
    put_sanitizer(home, 0, 0)
    monkeypatch.setenv("CUDA_HOME", str(home.parent))
    assert kernel_checks.sanitizer() == str(home / "compute-sanitizer")


def test_a_dry_run_on_the_cpu():
    found = kernel_rates(
        torch.device("cpu"), 2, 32, torch.float32, 2, 1, ["mobilenetv1_025"], ["mobilenetv1_025"], most_layers=2
    )
    json.dumps(found)
    assert len(found["layers"]) == 2 and len(found["steps"]) == 1
    assert speedups(found["layers"]).keys() == {row["layer"] for row in found["layers"]}
    row = found["layers"][0]
    assert row["layer"] == "depthwise 8>8 16x16 k3 s1 g8 float32"
    assert row["bytes"] == 3 * 4 * 2 * (8 * 16 * 16 * 2)
    assert all(row["kernel_seconds"] > 0 and row["library_seconds"] > 0 for row in found["layers"])
    assert found["steps"][0]["seconds"].keys() == {"fused", "auto", "inductor"}
