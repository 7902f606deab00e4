"""The committed matrix: every network has a plan where the project says so."""

import json
from itertools import product

import pytest

import archs
from engine.plan.matrix import BUDGETS, MATRIX, PRECISIONS

EXACT = ("inceptionv3", "darknet53", "resnext50")
MICRO_BATCHED = ("resnext29_2x64d", "inceptionv3_fullres")


@pytest.fixture(scope="module")
def rows(root):
    found = json.loads((root / MATRIX).read_text(encoding="utf-8"))["rows"]
    return {(row["arch"], row["precision"], row["gpu_memory_gib"]): row for row in found}


def test_every_cell_is_there(rows):
    planned = {name for name, _, _ in rows}
    assert rows.keys() == set(product(planned, PRECISIONS, BUDGETS)) and planned <= set(archs.names())


@pytest.mark.slow
def test_every_network_is_planned(rows):
    """In the slow run: a network that was added just now is planned when it is published."""
    assert {name for name, _, _ in rows} == set(archs.names())


def test_every_network_has_a_plan_at_8_gib(rows):
    without = [key for key, row in rows.items() if not row.get("fits")]
    assert without == []
    assert all(row["predicted_gib"] <= row["gpu_memory_gib"] for row in rows.values())
    assert all(row["micro_batch_size"] * row["accumulation"] >= 128 for row in rows.values())


def test_the_papers_networks_keep_their_function_at_8_gib(rows):
    for arch in EXACT:
        for precision in PRECISIONS:
            row = rows[arch, precision, 8]
            assert row["exact"] and row["accumulation"] == 1, row


def test_the_repositorys_networks_are_split_and_say_so(rows):
    for arch in MICRO_BATCHED:
        for precision in PRECISIONS:
            for budget in (8, 12, 16):
                row = rows[arch, precision, budget]
                assert row["fits"] and not row["exact"] and row["accumulation"] > 1, row


def test_more_memory_never_costs_more(rows):
    for arch in {name for name, _, _ in rows}:
        for precision in PRECISIONS:
            exact = [rows[arch, precision, budget]["exact"] for budget in BUDGETS]
            assert exact == sorted(exact), (arch, precision)


def test_raw_outputs_spare_what_the_table_says(root):
    """mobilenetv2's figure made anew at a smaller size: its ratio hardly depends on that."""
    from engine.plan.memory.saved_bytes import NETWORKS, OUTPUT, row

    found = json.loads(OUTPUT.read_text(encoding="utf-8"))["rows"]
    assert {one["arch"] for one in found} == set(NETWORKS) and all(one["plain_over_raw"] > 1 for one in found)
    recorded = next(one for one in found if one["arch"] == "mobilenetv2" and one["precision"] == "bf16")
    assert row("mobilenetv2", "bf16", 64)["plain_over_raw"] == pytest.approx(recorded["plain_over_raw"], rel=0.02)
