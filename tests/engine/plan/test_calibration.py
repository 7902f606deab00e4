"""What earlier runs measured, and what it does to the next plan."""

from dataclasses import replace
from functools import partial

import pytest

from engine.config import ModelConfig, OptimConfig, RunConfig
from engine.config.byte_sizes import GIB
from engine.plan.calibration import Correction, Factors, Measurement, add_measurement, calibration_file, correction_for
from engine.plan.memory.trace import Category
from engine.plan.run_plan import plan_run
from engine.plan.search import Search
from engine.plan.told import plan_lines
from engine.step.plan import Hardware
from engine.step.recompute import Policy
from tests.engine.plan.test_search import Chain, workload

GPU = Hardware("cuda", "H100", (9, 0), native_bf16=True, memory_bytes=80 * GIB)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HCR_CACHE", str(tmp_path / "cache"))


def run(arch: str = "resnet50", workspace: float = 1.0, policy: str = "none", **more) -> Measurement:
    return Measurement(arch, "bf16", policy, workspace, **more)


def test_a_measured_peak_corrects_the_next_plan_of_that_network(own_cache):
    assert correction_for("H100").factors("resnet50", "bf16", "none") == Factors()
    assert "nothing yet" in correction_for("H100").describe()
    add_measurement("H100", run(workspace=1.04, fragmentation=1.01, context=1 << 28), GIB)
    add_measurement("H100", run(workspace=0.98), GIB)
    add_measurement("T4", run(workspace=0.9), GIB)
    known = correction_for("H100")
    factors = known.factors("resnet50", "bf16", "none")
    assert (factors.workspace, factors.fragmentation, factors.context) == (1.04, 1.01, 1 << 28)
    assert "2 runs of 1 networks" in known.describe()
    said = factors.describe()
    assert all(words in said for words in ("allocator × 1.040", "reserved × 1.010", "context + 0.25 GiB", "2 of this"))
    low = correction_for("T4").factors("resnet50", "bf16", "none")
    assert low.workspace == 1 and low.describe() == ""  # a prediction that was too high stays the safe one


def test_one_outlier_weighs_on_no_other_network():
    known = Correction("H100", (run("vgg11"), run("nin"), run("alexnet"), run(workspace=1.9)))
    assert known.factors("efficientnet_b0", "bf16", "none").workspace == 1
    assert known.factors("resnet50", "bf16", "none").workspace == 1.9
    few = Correction("H100", (run(workspace=1.9), run("nin", workspace=1.8)))
    assert few.factors("efficientnet_b0", "bf16", "none") == Factors()


def test_a_network_s_outlier_is_forgotten_by_it_too():
    known = Correction("H100", (run(workspace=1.9), *[run(workspace=1.01)] * 3))
    assert known.factors("resnet50", "bf16", "none").workspace == 1.01


def test_what_all_networks_measure_corrects_one_that_was_not_measured():
    known = Correction("H100", tuple(run(name, 1.05) for name in ("vgg11", "nin", "alexnet")))
    factors = known.factors("efficientnet_b0", "bf16", "first 4 blocks")
    assert factors.workspace == 1.05 and factors.source == "the median of 3 networks"


def test_another_policy_of_the_network_counts_by_its_median():
    known = Correction("H100", tuple(run(workspace=each, policy="block") for each in (1.02, 1.03, 1.5)))
    assert known.factors("resnet50", "bf16", "none").workspace == 1.03
    assert known.factors("resnet50", "bf16", "block").workspace == 1.5


def test_small_runs_and_implausible_figures_are_left_out(own_cache):
    for measured, peak in ((run(workspace=1.5), GIB // 8), (run(workspace=5.0), GIB), (run(context=5 * GIB), GIB)):
        assert add_measurement("H100", measured, peak).measured == ()


@pytest.mark.parametrize("text", ["{not json", '{"H100, torch 2.15": [1.04, 0.98]}'], ids=["damaged", "older"])
def test_a_file_that_says_nothing_holds_nothing(own_cache, text):
    calibration_file().parent.mkdir(parents=True)
    calibration_file().write_text(text)
    assert correction_for("H100").measured == ()
    assert add_measurement("H100", run(), GIB).measured == (run(),)


def test_a_correction_enlarges_its_own_category():
    plain = replace(workload(), cuda=True)
    known = Correction("H100", (Measurement("chain", "fp32", "none", 1.1, 1.05, 7 << 20),))
    one, more = (
        Search(each, ["fp32"]).candidate("fp32", Policy(), 1, GIB) for each in (plain, replace(plain, correction=known))
    )
    live = one.allocated - plain.device.cublas  # at the peak

    def grown(category: Category) -> int:
        return more.predicted[category] - one.predicted.get(category, 0)

    assert grown(Category.WORKSPACE) == pytest.approx(0.1 * live, rel=1e-3)
    assert grown(Category.FRAGMENTATION) == pytest.approx(0.05 * live, rel=1e-3)
    assert grown(Category.CONTEXT) == 7 << 20


def test_the_run_says_what_its_plan_was_multiplied_by():
    known = Correction("H100", (Measurement("chain", "bf16", "none", 1.1),))
    config = RunConfig(optim=OptimConfig(batch_size=48), model=ModelConfig(arch="chain", compile="off"))
    plan = partial(plan_run, config, Chain(True), partial(Chain, True), 10, GPU, 8 * GIB)
    lines = plan_lines(plan(correction=known))
    assert len(lines) <= 5
    assert "corrected by earlier runs (1 of this network and policy): allocator × 1.100" in lines[1]
    assert "corrected" not in "".join(plan_lines(plan()))
