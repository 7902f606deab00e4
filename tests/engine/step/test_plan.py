"""What a plan decides, for hardware that need not be here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.config import (
    AugmentConfig,
    ConfigError,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    RunConfig,
)
from engine.step.plan import Hardware, choose_compile, choose_precision, make_plan, split_batch

CPU = Hardware("cpu", "CPU", native_bf16=True)
OLD_CPU = Hardware("cpu", "CPU")
PASCAL = Hardware("cuda", "GTX 1080", (6, 1))
VOLTA = Hardware("cuda", "V100", (7, 0))
TURING = Hardware("cuda", "RTX 2080", (7, 5))
AMPERE = Hardware("cuda", "RTX 3090", (8, 6), native_bf16=True)


@pytest.mark.parametrize(
    ("hardware", "precision"),
    [(CPU, "bf16"), (OLD_CPU, "fp32"), (PASCAL, "fp32"), (VOLTA, "fp16"), (TURING, "fp16"), (AMPERE, "bf16")],
    ids=lambda value: getattr(value, "name", value),
)
def test_auto_precision(hardware, precision):
    assert choose_precision("auto", hardware) == precision
    assert choose_precision("fp32", hardware) == "fp32"


def test_fp16_needs_a_gpu():
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision("fp16", CPU)


def test_compile_is_on_where_triton_runs():
    assert [choose_compile("auto", hardware) for hardware in (CPU, PASCAL, VOLTA, AMPERE)] == [False, False, True, True]
    assert choose_compile("on", CPU) and not choose_compile("off", AMPERE)
    assert choose_compile("auto", AMPERE, zero_stage=2) and not choose_compile("auto", AMPERE, zero_stage=3)
    with pytest.raises(ConfigError, match="--compile with ZeRO-3"):
        choose_compile("on", AMPERE, zero_stage=3)


@given(ranks=st.integers(1, 64), share=st.integers(1, 256), data=st.data())
def test_a_split_holds_the_share_in_as_few_even_parts_as_asked_for(ranks, share, data):
    micro = data.draw(st.integers(0, share))
    size, accumulation = split_batch(ranks * share, ranks, micro)
    assert size * (accumulation - 1) < share <= size * accumulation
    assert size <= (micro or share)
    assert accumulation == 1 or (micro or share) * (accumulation - 1) < share
    assert size == -(-share // accumulation)
    if micro and share % micro == 0:
        assert size == micro


def test_the_largest_share_of_an_uneven_batch_is_split():
    assert split_batch(128, 3, 0) == (43, 1)
    assert split_batch(128, 3, 16) == (15, 3)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match="2 is less than an image for each of 4 ranks: use 4 or more, or"):
        split_batch(2, 4, 0)
    with pytest.raises(ConfigError, match="micro-batches of 96 are more than a rank's share of 64"):
        split_batch(128, 2, 96)


def test_images_that_are_mixed_may_not_be_on_two_ranks():
    mixed = RunConfig(optim=OptimConfig(batch_size=32), augment=AugmentConfig(mixup=0.2))
    with pytest.raises(ConfigError, match=r"--batch-size 32 over 3 ranks gives shares .* use 30 or 33, or no mixing"):
        make_plan(mixed, nn.Linear(4, 4), CPU, ranks=3)
    assert make_plan(mixed, nn.Linear(4, 4), CPU, ranks=2).micro_batch_size == 16


def test_plan_counts_states_and_says_what_changes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    parameters = 4 * (8 * 3 * 9 + 8 + 8 + 8)
    config = RunConfig(optim=OptimConfig(batch_size=64), parallel=ParallelConfig(micro_batch_size=8))
    plan = make_plan(config, model, AMPERE, ranks=2, zero_stage=2)
    assert plan.micro_batch_size * plan.accumulation * plan.ranks == 64
    assert plan.parameter_bytes == parameters
    assert plan.gradient_bytes == parameters // 2
    assert plan.optimizer_bytes == 2 * parameters // 2
    assert any("micro-batches of 8" in change for change in plan.changes)
    assert "64 = 8 × 4 accumulated × 2 ranks" in plan.describe()
    assert make_plan(config, nn.Linear(4, 4), AMPERE).changes == ()


def test_plan_of_a_model_without_memory():
    with torch.device("meta"):
        model = nn.Linear(1000, 1000)
    plan = make_plan(RunConfig(precision=PrecisionConfig("fp16")), model, TURING)
    assert plan.loss_scaling and plan.parameter_bytes == 4 * 1001000


def test_compile_and_zero3_do_not_mix():
    with pytest.raises(ConfigError, match="ZeRO-3"):
        make_plan(RunConfig(model=ModelConfig(compile="on")), nn.Linear(1, 1), AMPERE, ranks=2, zero_stage=3)
