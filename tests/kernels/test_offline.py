"""Machine code for GPUs that are not here: nothing spills, and maps move 16 bytes a thread."""

import json

import pytest

pytest.importorskip("triton.backends.nvidia")

from kernels.offline import ARCHITECTURES, CASES, TABLE, table

NARROW = {
    "shuffle.shuffle_kernel": "g sources, g elements apart",
    "statistics.merge_kernel": "vectors of partials",
    # Nine accumulators of 16 bytes a thread would spill; 8 bytes a thread are still whole lines a warp.
    "depthwise_backward.input_and_weight_kernel": "8 bytes in 16-bit dtypes",
}
"""Kernels whose widest loads need not be the most frequent ones, and why."""


SPILLS = {("depthwise 7x7 stride 1", "depthwise.forward_kernel", "float16", 90): 16}
"""Bytes that are known to spill: here ptxas stops at 128 registers, where bf16's twin takes 133 and spills none."""


def hold(row):
    """No spill but the known, registers that let a block run, 16-byte loads of maps."""
    known = SPILLS.get((row["case"], row["kernel"], row["dtype"], row["sm"]), 0)
    assert row["spilled_bytes"] <= known, row
    assert known or not {"LDL", "STL"} & row["instructions"].keys(), row
    assert row["registers"] <= 255, row
    loads = row["instructions"]
    if row["kernel"] not in NARROW:
        assert loads.get("LDG.128", 0) + loads.get("LDGSTS.128", 0) > 0, row
    if row["kernel"] == "depthwise_backward.input_and_weight_kernel":
        assert loads.get("LDG.64", 0) + loads.get("LDG.128", 0) > 20, row


def test_a_kernel_of_each_kind_compiles_for_hopper():
    rows = table(["depthwise 5x5 stride 1"], [90])
    assert len(rows) == 9
    for row in rows:
        hold(row)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_for_every_architecture(case):
    for row in table([case]):
        hold(row)


def test_the_committed_table_has_no_spill():
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["kernels"]
    assert rows
    for row in rows:
        assert row["case"] in CASES and row["sm"] in ARCHITECTURES
        hold(row)
