"""Two ranks with a GPU each compute what one does: under DDP, with BatchNorm over both, under ZeRO, after a rescue."""

import json
import re

import pytest
from safetensors.torch import load_file

from tests.launch.conftest import start_ranks

pytestmark = [pytest.mark.emulated, pytest.mark.slow, pytest.mark.distributed]

CARDS = {"EMULATED_GPU_COUNT": "2", "EMULATED_GPU_MACHINE": "ranks"}


@pytest.fixture(scope="session")
def on_cards(root):
    """Start a script on as many ranks as GPUs; returns the finished process."""

    def start(*arguments, script: str = "tests/launch/norm_free.py", ranks: int = 2, code: int = 0, **extra: str):
        return start_ranks(root, [script, *arguments], ranks, code, CARDS | extra)

    return start


@pytest.fixture(scope="session")
def one_card(on_cards, tiny, tmp_path_factory):
    """The run that the others are compared with."""
    folder = tmp_path_factory.mktemp("one card") / "run"
    on_cards(*tiny, "--no-compile", "--epochs", 2, "--output", folder, ranks=1)
    return folder


def zero(root, stage: str) -> dict[str, str]:
    """Environment of a DeepSpeed launch."""
    path = root / "configs" / "deepspeed" / f"zero{stage}.json"
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


@pytest.mark.parametrize("stage", ["", "1", "2", "3", "fsdp"])
def test_two_ranks_equal_one(on_cards, tiny, one_card, tmp_path, rows, root, stage):
    run = tmp_path / "run"
    fsdp = stage == "fsdp"
    more = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if fsdp else zero(root, stage) if stage else {}
    done = on_cards(*tiny, "--no-compile", "--epochs", 2, "--output", run, **more)
    assert "Grad strides" not in done.stderr and "broadcast_buffers" not in done.stderr
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["device"], plan["ranks"], plan["zero_stage"]) == ("cuda", 2, 3 if fsdp else int(stage or 0))
    for ours, theirs in zip(rows(run, "step"), rows(one_card, "step"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    expected = load_file(one_card / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        assert (tensor - expected[name]).abs().max() <= 1e-4, name


HALF = ("--no-compile", "--precision", "fp16", "--epochs", 2)


@pytest.fixture(scope="session")
def one_card_in_half(on_cards, tiny, tmp_path_factory):
    """The fp16 run that the others are compared with."""
    folder = tmp_path_factory.mktemp("one card in fp16") / "run"
    on_cards(*tiny, *HALF, "--output", folder, ranks=1)
    return folder


@pytest.mark.parametrize("stage", ["", "1", "2", "3"])
def test_half_precision_on_two_ranks_equals_that_on_one(
    on_cards, tiny, one_card, one_card_in_half, tmp_path, rows, root, stage
):
    """Under DDP and ZeRO, each with its own loss scaler: the steps that count are the same but for fp16's rounding."""
    run = tmp_path / "run"
    on_cards(*tiny, *HALF, "--output", run, **(zero(root, stage) if stage else {}))
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["precision"], plan["loss_scaling"], plan["zero_stage"]) == ("fp16", True, int(stage or 0))
    ours, theirs = rows(run, "step"), rows(one_card_in_half, "step")
    assert [row["loss"] for row in theirs] != [row["loss"] for row in rows(one_card, "step")], "it is fp32"
    for left, right in zip(ours, theirs, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=2e-3)
    expected = load_file(one_card_in_half / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        assert (tensor - expected[name]).abs().max() <= 2e-3, name


@pytest.mark.parametrize("flags", [("--no-compile",), ("--compile",), ("--no-compile", "--precision", "bf16")])
def test_batchnorm_over_both(on_cards, tmp_path, flags):
    sizes = ["--arch", "convnet_bn", "--image-size", 32, "--batch-size", 16, "--data.limit", 64, "--epochs", 1]
    run = tmp_path / "run"
    on_cards(*sizes, "--sync-bn", "--log.no-plots", *flags, "--output", run, script="launch/train.py")
    assert json.loads((run / "plan.json").read_text())["sync_bn"]
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())


def test_more_processes_than_gpus(on_cards, tiny, tmp_path):
    """One message, before a network is built, and exit code 2 of each."""
    done = on_cards(*tiny, "--output", tmp_path / "run", ranks=3, code=1)
    assert done.stderr.count("3 processes were started on a machine with 2 GPUs: each needs its own") == 1
    assert not (tmp_path / "run").exists()
    assert done.stderr.count("Traceback") == 1, "torchrun's own"
    assert set(re.findall(r"exitcode *: (-?\d+)", done.stderr)) == {"2"}
