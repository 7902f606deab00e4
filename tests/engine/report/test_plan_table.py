"""A plan as the report shows it."""

import dataclasses

from torch import nn

from engine.config import RunConfig
from engine.report.plan_table import LINES, SHOWN_ELSEWHERE, plan_rows
from engine.runs.wording import DASH
from engine.step.plan import Hardware, Plan, make_plan


def planned(**changes) -> dict:
    model = nn.Sequential(nn.Conv2d(3, 512, 3), nn.BatchNorm2d(512), nn.Linear(512, 1000))
    model.blocks = lambda: iter(model)
    plan = make_plan(RunConfig(), model, Hardware("cpu", "a CPU"))
    return dataclasses.replace(plan, **changes).as_dict()


def test_every_field_of_a_plan_has_words():
    fields = {field.name for field in dataclasses.fields(Plan)}
    assert fields <= SHOWN_ELSEWHERE | {field for field, _ in LINES.values()}


def test_what_was_not_planned_is_left_out():
    rows = dict(plan_rows(planned()))
    assert rows["batch"] == "128 images at once" and rows["recompute"] == "none: every activation is kept"
    assert rows.keys().isdisjoint({"planned for", "predicted peak", "at the peak", "sharding", "BatchNorm"})
    assert "gradients over GPUs" not in rows
    assert dict(plan_rows(planned(gradient_compression="bf16")))["gradients over GPUs"] == "sent in bf16"
    assert not [text for text in rows.values() if DASH in text or text.startswith("0.0") or "_" in text]


def test_a_searched_plan_says_what_it_predicts():
    gib = 2**30
    rows = dict(
        plan_rows(
            planned(
                micro_batch_size=16,
                accumulation=4,
                ranks=2,
                zero_stage=2,
                offload_optimizer=True,
                budget_bytes=8 * gib,
                predicted_peak_bytes=7 * gib,
                predicted_allocated_bytes=6 * gib,
                predicted_bytes={"gradients": gib, "saved activations": 5 * gib, "input": 0},
                relative_cost=1.234,
            )
        )
    )
    assert rows["batch"] == "128 images: 16 images × 4 micro-batches × 2 ranks"
    assert rows["sharding"] == "ZeRO-2, optimizer in host memory"
    assert rows["planned for"] == "8.00 GiB"
    assert rows["predicted peak"] == "7.00 GiB, 6.00 GiB of it in tensors"
    assert rows["at the peak"] == "saved activations 5.00 GiB, gradients 1.00 GiB"
    assert rows["predicted time"] == "1.23 × the cheapest way"


def test_fields_of_another_version_are_kept():
    assert ("some day bytes", "1.00 GiB") in plan_rows({"some_day_bytes": 2**30})
