"""The GPU report's memory suite, dry on a CPU at tiny sizes: no peak is measured and none is claimed."""

import pytest
import torch

from engine.bench.suites.memory_rows import memory_rows, summary


@pytest.fixture(scope="module")
def rows():
    return memory_rows(
        ["resnet18"], [0.21, 0.0001], ["fp32"], batch_size=8, image_size=32, steps=1, others=1, num_classes=10
    )


def test_rows_have_plan_and_speed(rows):
    fits, too_small = rows
    assert fits["fits"] and fits["chosen"]["images_per_second"] > 0
    assert fits["chosen"]["predicted_bytes"] <= 0.21 * 2**30
    assert len(fits["others"]) == 1 and fits["others"][0]["images_per_second"] > 0
    assert 0 < fits["chosen_over_best"] <= 1
    assert not too_small["fits"] and too_small["least_bytes"] > 0.0001 * 2**30


def test_nothing_is_measured_without_a_gpu(rows):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert rows[0]["chosen"]["measured_bytes"] is None
    said = summary(rows)
    assert said["within_5_percent"] is None and said["lowest_ratio"] is None
    assert (said["rows"], said["without_a_plan"], said["out_of_memory"]) == (2, 1, 0)


def test_summary_counts_what_is_off():
    def row(ratio, **chosen):
        return {"fits": True, "chosen": {"predicted_over_measured": ratio, **chosen}, "chosen_over_best": 0.97}

    said = summary([row(1.0), row(1.04), row(0.94), row(None, out_of_memory="CUDA out of memory")])
    assert said["within_5_percent"] == pytest.approx(2 / 3, abs=1e-4)
    assert said["lowest_ratio"] == 0.94 and said["out_of_memory"] == 1 and said["lowest_chosen_over_best"] == 0.97
