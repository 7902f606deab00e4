"""Two processes compute what one does: the same losses and weights under DDP and under ZeRO."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.distributed


def zero(root, stage: int | str) -> dict[str, str]:
    """Environment of a DeepSpeed launch on CPUs."""
    return {
        "ACCELERATE_USE_CPU": "false",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(root / "configs" / "deepspeed" / f"zero{stage}.json"),
        "DS_ACCELERATOR": "cpu",
    }


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
        assert left["val_images"] == right["val_images"] == 359
        assert left["val_loss"] == pytest.approx(right["val_loss"], abs=1e-4)
    expected = load_file(reference / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def assert_others(run: Path, plain: Path) -> None:
    """The weights of one run are not those of the other."""
    finished, expected = (load_file(folder / "model.safetensors") for folder in (run, plain))
    assert any((finished[name] - expected[name]).abs().max() > 1e-3 for name in expected)


def assert_resumed_alike(launch, run: Path, tmp_path: Path, **environment) -> Path:
    """A finished run loses its weights and its last checkpoint, is resumed on two ranks, and ends with the same bits.

    Returns where the lost checkpoint is.
    """
    weights, lost = run / "model.safetensors", tmp_path / "lost"
    finished = load_file(weights)
    sorted((run / "checkpoints").iterdir())[-1].rename(lost)
    weights.unlink()
    launch("--resume", run, ranks=2, **environment)
    for name, tensor in load_file(weights).items():
        torch.testing.assert_close(tensor, finished[name], rtol=0, atol=0)
    return lost


def test_ddp_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path):
    launch(*tiny, "--output", tmp_path / "run", ranks=2)
    assert_same_run(tmp_path / "run", alone)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["ranks"] == 2


@pytest.mark.slow
def test_ddp_with_accumulation_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path):
    launch(*tiny, "--output", tmp_path / "run", "--parallel.micro-batch-size", 10, ranks=2)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_zero2_equals_one_process(launch, tiny, assert_same_run, alone, tmp_path, root):
    """Then loses its last checkpoint and is resumed: the same end, from shards that are no pickles."""
    run = tmp_path / "run"
    launch(*tiny, "--output", run, ranks=2, **zero(root, 2))
    assert_same_run(run, alone)
    lost = assert_resumed_alike(launch, run, tmp_path, **zero(root, 2))
    assert len(list((lost / "shards").glob("*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_ranks_plan_for_the_least_of_them(launch, tiny, assert_same_run, alone, tmp_path, root, stage):
    """They say what they have before anything else is set up, under DDP and DeepSpeed; then the run is the same."""
    run = tmp_path / "run"
    environment = zero(root, stage) if stage else {}
    done = launch(*tiny, "--output", run, ranks=2, script="tests/launch/uneven_memory.py", **environment)
    assert all(f"rank {rank} of 2: least 100" in done.stdout for rank in (0, 1))
    assert_same_run(run, alone)


@pytest.fixture(scope="session")
def averaged(launch, tiny, tmp_path_factory):
    """A run on one process that keeps an average of the weights."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    launch(*tiny, "--optim.ema", 0.9, "--output", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_averaged_weights_equal_one_process(launch, tiny, assert_same_run, averaged, alone, tmp_path, root, stage):
    """Under DDP and ZeRO; then it loses its last checkpoint and is resumed: the same end, bit for bit."""
    run, environment = tmp_path / "run", zero(root, stage) if stage else {}
    launch(*tiny, "--optim.ema", 0.9, "--output", run, ranks=2, **environment)
    assert_same_run(run, averaged)
    assert_others(run, alone)
    assert_resumed_alike(launch, run, tmp_path, **environment)


@pytest.mark.slow
def test_sharpness_aware_steps_equal_one_process(launch, tiny, assert_same_run, alone, tmp_path):
    """Whatever the ranks and micro-batches: e is that of the whole batch. Then resumed, bit for bit."""
    single, run = tmp_path / "single", tmp_path / "run"
    launch(*tiny, "--optim.sam", 0.02, "--output", single)
    launch(*tiny, "--optim.sam", 0.02, "--output", run, "--parallel.micro-batch-size", 10, ranks=2)
    assert_same_run(run, single)
    assert_others(run, alone)
    assert_resumed_alike(launch, run, tmp_path)


@pytest.mark.slow
def test_sharpness_aware_steps_under_deepspeed_are_refused(launch, tiny, tmp_path, root):
    done = launch(*tiny, "--optim.sam", 0.1, "--output", tmp_path / "run", ranks=2, code=1, **zero(root, 2))
    assert done.stderr.count("--optim.sam does not run under DeepSpeed") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_average_of_sharded_parameters_is_refused(launch, tiny, tmp_path, root):
    done = launch(*tiny, "--optim.ema", 0.9, "--output", tmp_path / "run", ranks=2, code=1, **zero(root, 3))
    assert done.stderr.count("--optim.ema needs whole parameters on a GPU; use ZeRO-2") == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, "2_offload", 3])
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
    assert rows(run, "epoch")[-1]["val_loss"] == pytest.approx(rows(alone, "epoch")[-1]["val_loss"], abs=1e-4)


@pytest.fixture
def broken(tmp_path) -> Path:
    """The last validation image of two classes of pictures, which is none; the second rank reads it."""
    photos = tmp_path / "photos"
    for split in ("train", "val"):
        for label in ("a", "b"):
            (photos / split / label).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (40, 40), (number, 9, 9)).save(photos / split / label / f"{number}.png")
    path = photos / "val" / "b" / "5.png"
    path.write_bytes(b"nothing")
    return path


ON_PHOTOS = ["--arch", "norm_free", "--image-size", 32, "--batch-size", 12, "--epochs", 1, "--log.no-plots"]


def test_bad_images_of_every_rank_are_counted(launch, broken, tmp_path, rows):
    """The second rank reads the second half of each batch; what it finds is told, written down and counted."""
    run = tmp_path / "run"
    done = launch(*ON_PHOTOS, "--data.root", tmp_path / "photos", "--output", run, ranks=2)
    assert str(broken) in done.stdout and "unreadable images left out: 1" in done.stdout
    assert [row["path"] for row in rows(run, "event") if row["event"] == "bad_image"] == [str(broken)]
    assert rows(run, "epoch")[0]["val_images"] == 11


@pytest.mark.slow
def test_a_bad_image_of_another_rank_is_refused(launch, broken, tmp_path):
    flags = [*ON_PHOTOS, "--data.root", tmp_path / "photos", "--data.on-bad-image", "error"]
    refused = launch(*flags, "--output", tmp_path / "refused", ranks=2, code=1)
    assert str(broken) in refused.stderr and "Repair or remove" in refused.stderr


@pytest.mark.slow
def test_sigterm_to_torchrun_saves(launch, tiny, tmp_path, rows, root):
    """The agent passes the signal to both ranks; they agree on a step, save it, and the run goes on from there."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["tests/launch/norm_free.py", *tiny, "--epochs", "200", "--output", str(run)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until(lambda: list(run.glob("checkpoints/step-*")), [process])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    stopped = rows(run, "event")[-1]
    assert stopped["event"] == "interrupted"
    assert (run / "checkpoints" / f"step-{stopped['step']:08d}" / "trainer.pt").is_file()


def test_other_runs_folder_is_refused_on_all_ranks(launch, tiny, alone):
    done = launch(*tiny, "--output", alone, ranks=2, code=1)
    assert done.stderr.count("holds another run") == 1
