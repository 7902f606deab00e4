"""A run's description as a plan, and what it falls back on; the search itself is tested in test_search.py."""

from dataclasses import replace
from functools import partial

import pytest

import archs
from engine.config import (
    ConfigError,
    DataConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    RunConfig,
)
from engine.config.byte_sizes import GIB
from engine.plan.budget import refuse_more_than_the_card
from engine.plan.memory.simulate import Untraceable
from engine.plan.memory.trace import Category
from engine.plan.run_plan import plan_run
from engine.plan.search import Search
from engine.plan.told import plan_lines
from engine.report.memory_picture import planned_picture
from engine.step.plan import Hardware
from tests.engine.plan.test_search import Chain, plain_peak, workload

AMPERE = Hardware("cuda", "RTX 3090", (8, 6), native_bf16=True, memory_bytes=24 * GIB)


@pytest.fixture(scope="module")
def search():
    return Search(workload(), ["fp32"])


def config(**memory) -> RunConfig:
    return RunConfig(optim=OptimConfig(batch_size=48), precision=PrecisionConfig("fp32"), memory=MemoryConfig(**memory))


def planned(budget: int, ranks: int = 1, **memory):
    run = config(**memory)
    run = replace(run, data=replace(run.data, image_size=32))
    return plan_run(run, Chain(True), partial(Chain, True), 10, Hardware("cpu", "CPU"), budget, ranks)


def test_no_budget_no_search():
    assert planned(0).plan.recompute == "none" and planned(0).result is None
    assert [plan.micro_batch_size for plan in planned(0).ladder] == [24, 12, 6, 3, 2]


def test_a_run_says_its_plan_in_five_lines(search):
    found = planned(int(0.4 * plain_peak(search)))
    assert found.plan.predicted_peak_bytes <= 0.4 * plain_peak(search)
    assert sum(found.plan.predicted_bytes.values()) == found.plan.predicted_peak_bytes
    lines = plan_lines(found)
    assert len(lines) == 5 and "predicted peak" in lines[1] and lines[2].startswith("function:")
    needs = [plan.predicted_peak_bytes for plan in found.ladder if plan.predicted_peak_bytes]
    assert needs == sorted(needs, reverse=True)
    assert found.ladder[-1].micro_batch_size == 2


def test_what_was_asked_for_is_kept(search):
    budget = plain_peak(search)
    assert planned(budget, recompute="block").plan.policy.kind == "block"
    assert planned(budget, offload="on").plan.policy.offload
    run = replace(config(), parallel=ParallelConfig(micro_batch_size=12))
    run = replace(run, data=replace(run.data, image_size=32))
    plan = plan_run(run, Chain(True), partial(Chain, True), 10, Hardware("cpu", "CPU"), budget).plan
    assert (plan.micro_batch_size, plan.accumulation) == (12, 4)


def test_nothing_fits_is_refused_with_what_would_do():
    with pytest.raises(ConfigError, match=r"no plan in .*it needs .*most of it .*--gpu-memory .*GiB would do"):
        planned(100_000)


def test_a_network_that_cannot_be_simulated_is_measured_instead(caplog):
    class Odd(Chain):
        def forward(self, images):
            return super().forward(images) * float(images.sum().item() > 0)

    run = config()
    with caplog.at_level("INFO", logger="hcr"):
        found = plan_run(run, Odd(True), partial(Odd, True), 10, Hardware("cpu", "CPU"), GIB)
    assert found.result is None and found.plan.micro_batch_size == 48
    assert "_local_scalar_dense" in caplog.text and "first steps measure" in caplog.text
    with pytest.raises(Untraceable):
        Search(replace(workload(), build=partial(Odd, True)), ["fp32"]).run(GIB)


def test_more_than_the_card_is_refused():
    with pytest.raises(ConfigError, match=r"RTX 3090 has 24\.00 GiB"):
        refuse_more_than_the_card(25 * GIB, AMPERE)
    refuse_more_than_the_card(24 * GIB, AMPERE)
    refuse_more_than_the_card(99 * GIB, None)


def test_a_plan_has_the_picture_of_its_own_step():
    """Of the chosen candidate, under its ZeRO stage: the highest moment is the predicted peak."""
    config = RunConfig(optim=OptimConfig(batch_size=48), model=ModelConfig(compile="off"))
    planned = plan_run(config, Chain(True), partial(Chain, True), 10, AMPERE, 4 * GIB, ranks=2, zero_stage=1)
    assert planned.timeline is not None
    assert abs(planned.timeline.peak - planned.plan.predicted_peak_bytes) <= len(Category)
    assert (planned_picture(planned) or b"").startswith(b"\x89PNG")
    unplanned = plan_run(config, Chain(True), partial(Chain, True), 10, AMPERE, 0)
    assert planned_picture(unplanned) is None


def test_a_plan_that_is_found_at_once_falls_back_on_recompute_first():
    """The search stops at it, and has looked at nothing that comes before micro-batches."""
    config = RunConfig(optim=OptimConfig(batch_size=48), model=ModelConfig(compile="off"))
    found = plan_run(config, Chain(True), partial(Chain, True), 10, AMPERE, 8 * GIB)
    assert found.plan.recompute == "none" and len(found.result.candidates) == 1
    first = found.ladder[0]
    assert first.policy.segments and first.accumulation == 1
    assert first.predicted_peak_bytes < 0.95 * found.plan.predicted_peak_bytes


def test_a_run_that_fits_no_gpu_names_the_stage_that_does():
    """Nine tenths of this network are parameters: a GPU of four holds them sharded."""
    config = RunConfig(
        optim=OptimConfig(batch_size=32), data=DataConfig(image_size=64), model=ModelConfig(compile="off")
    )
    build = partial(archs.build, "alexnet_owt", 1000, image_size=64)
    with pytest.raises(ConfigError, match=r"would do, or ZeRO-1: accelerate launch .*_zero1.yaml --num_processes 4"):
        plan_run(config, build(), build, 1000, AMPERE, int(2.35 * GIB), ranks=4)
