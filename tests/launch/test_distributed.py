"""Two processes compute what one does: the same losses and weights under DDP and under ZeRO."""

import json

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed


def zero(root, stage: int) -> dict[str, str]:
    """Environment of a DeepSpeed launch on CPUs."""
    return {
        "ACCELERATE_USE_CPU": "false",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(root / "configs" / "deepspeed" / f"zero{stage}.json"),
        "DS_ACCELERATOR": "cpu",
    }


@pytest.fixture(scope="session")
def alone(launch, tiny, tmp_path_factory):
    """The run that the others are compared with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    launch(*tiny, "--output", folder)
    return folder


@pytest.fixture(scope="session")
def assert_same_run(rows):
    """Compares two run folders, losses to 1e-4."""

    def check(folder, reference) -> None:
        compare(rows, folder, reference)

    return check


def compare(rows, folder, reference) -> None:
    ours, theirs = rows(folder, "step"), rows(reference, "step")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert theirs[-1]["loss"] < 0.7 * theirs[0]["loss"]
    for left, right in zip(ours, theirs, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-4)
    for left, right in zip(rows(folder, "epoch"), rows(reference, "epoch"), strict=True):
        assert left["train_images"] == right["train_images"] == 260
        assert left["test_images"] == right["test_images"] == 359
        assert left["test_loss"] == pytest.approx(right["test_loss"], abs=1e-4)
    expected = load_file(reference / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_ddp_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path):
    launch(*tiny, "--output", tmp_path / "run", ranks=2)
    assert_same_run(tmp_path / "run", alone)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["ranks"] == 2


def test_ddp_with_accumulation_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path):
    launch(*tiny, "--output", tmp_path / "run", "--parallel.micro-batch-size", 10, ranks=2)
    assert_same_run(tmp_path / "run", alone)


def test_zero2_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path, root):
    """Then loses its last checkpoint and is resumed: the same end, with shards read without pickle."""
    run = tmp_path / "run"
    launch(*tiny, "--output", run, ranks=2, **zero(root, 2))
    assert_same_run(run, alone)
    finished = load_file(run / "model.safetensors")
    last = sorted((run / "checkpoints").iterdir())[-1]
    assert (last / "zero").is_dir()
    last.rename(tmp_path / "lost")
    (run / "model.safetensors").unlink()
    launch("--resume", run, ranks=2, **zero(root, 2))
    for name, tensor in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(tensor, finished[name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_zero_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path, root, stage):
    launch(*tiny, "--output", tmp_path / "run", ranks=2, **zero(root, stage))
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_resume_on_another_number_of_processes(launch, tiny, rows, alone, tmp_path):
    """Started on two, finished on one: the order of the images does not depend on who reads them."""
    run = tmp_path / "run"
    launch(*tiny, "--output", run, ranks=2)
    sorted((run / "checkpoints").iterdir())[-1].rename(tmp_path / "lost")
    launch("--resume", run)
    assert rows(run, "epoch")[-1]["test_loss"] == pytest.approx(rows(alone, "epoch")[-1]["test_loss"], abs=1e-4)


def test_uneven_batch_is_refused_on_all_ranks(launch, tiny, tmp_path):
    done = launch(*tiny[:4], "--batch-size", 41, "--output", tmp_path / "run", ranks=2, code=1)
    assert done.stderr.count("41 does not divide over 2 ranks; 40 or 42 would") == 1


def test_other_runs_folder_is_refused_on_all_ranks(launch, tiny, alone):
    done = launch(*tiny, "--output", alone, ranks=2, code=1)
    assert done.stderr.count("holds another run") == 1
