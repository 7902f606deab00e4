"""What a card takes beside tensors: from its own report where it has one."""

import json

import pytest

from engine.plan.memory.card import device_of
from engine.plan.memory.cuda import MIB, Device
from kernels.dispatch import PROFILES

FIGURES = {
    "context_bytes": 600 * MIB,
    "matmul_bytes": 60 * MIB,
    "conv_bytes": 20 * MIB,
    "cublas_bytes": 32 * MIB,
    "cublas_backward_bytes": 32 * MIB,
}


def write(folder, row):
    path = folder / "made-up-9000" / "machine.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"rows": {"footprint": row}}))
    return folder


def test_a_measured_card_is_planned_as_it_was_measured(tmp_path):
    card = device_of("NVIDIA Made Up 9000", (8, 6), write(tmp_path, {"status": "measured", "figures": FIGURES}))
    assert (card.context, card.libraries, card.cublas, card.measured) == (600 * MIB, 80 * MIB, 64 * MIB, True)
    assert card.outside == 680 * MIB


def test_a_card_without_a_report_is_planned_as_assumed(tmp_path):
    assert device_of("NVIDIA Made Up 9000", (8, 6), tmp_path) == Device()
    assert device_of("NVIDIA Made Up 9000", (9, 0), tmp_path).cublas == 2 * Device().cublas


@pytest.mark.parametrize(
    "row",
    [
        {"status": "failed", "reason": "no NVML"},
        {"status": "measured", "figures": {"context_bytes": 1}},
        {"status": "measured", "figures": FIGURES | {"conv_bytes": "much"}},
        [],
    ],
    ids=["failed", "torn", "no number", "no row"],
)
def test_a_report_that_says_nothing_is_left_aside(tmp_path, row):
    assert device_of("NVIDIA Made Up 9000", (8, 6), write(tmp_path, row)) == Device()


def test_the_reports_of_this_project_can_be_read():
    for path in PROFILES.glob("*/machine.json"):
        row = json.loads(path.read_text())["rows"].get("footprint", {})
        assert device_of(path.parent.name).measured == (row.get("status") == "measured"), path
