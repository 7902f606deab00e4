"""The GPU report's suite in a dry run: rows that dispatch can read, and every shape found."""

import json

import torch

from engine.bench.kernel_rates import Layer, kernel_rates, layers_of, rows
from engine.bench.options import Options
from kernels.dispatch import speedups


def test_layers_are_the_networks_own():
    found = layers_of("mobilenetv1", 224)
    assert Layer(32, 32, 112, 112, 3, 1, 32, "relu6") in found
    assert Layer(512, 1024, 7, 7, 1, 1, 1, "relu6") in found
    assert len(found) == 18  # 9 depthwise shapes of 13, 9 pointwise of 13: the five middle blocks are one
    assert {layer.size for layer in layers_of("efficientnet_b0", 224)} == {1, 3, 5}


def test_rows_for_the_report():
    made = rows(Options(dry_run=True))
    assert [row.key for row in made] == [
        "step mobilenetv1_025",
        "depthwise 8>8 16x16 k3 s1 g8 bfloat16",
        "pointwise 8>16 16x16 k1 s1 g1 bfloat16",
    ]
    assert made[1].measure(0.0)["kernel_seconds"] > 0


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
    assert found["steps"][0]["seconds"].keys() == {"fused", "inductor"}
