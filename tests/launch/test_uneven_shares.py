"""A batch that does not divide over the ranks: shares differ by one, and the steps are those of one process."""

from pathlib import Path

import pytest

from tests.launch.apart import apart, beyond_rounding
from tests.launch.test_same_function import FLAGS, settings

pytestmark = pytest.mark.distributed

SHORT = [*FLAGS, "--data.limit", 66]
"""11 + 11 + 10, twice, and a tail of two images: BatchNorm may not count what the third rank runs instead."""
LONG = [*FLAGS, "--data.limit", 930]
"""30 steps, and the last one of two images."""


def assert_same(rows, run: Path, reference: Path, steps: int) -> None:
    """Losses within 1e-5, weights and running statistics within 1e-4 of their norm, the same evaluation."""
    found = apart(rows, run, reference, steps)
    print(found)
    assert found.losses <= 1e-5 and found.weights <= 1e-4
    assert not (beyond := beyond_rounding(found)), beyond
    left, right = rows(run, "epoch")[-1], rows(reference, "epoch")[-1]
    assert left["train_images"] == right["train_images"] and left["val_images"] == right["val_images"]
    assert left["val_loss"] == pytest.approx(right["val_loss"], abs=1e-4)


def test_three_ranks_share_32_images(launch, here, rows, tmp_path):
    """And a tail of two."""
    run = tmp_path / "run"
    launch(*SHORT, "--output", run, script="launch/train.py", ranks=3)
    here(*SHORT, "--output", tmp_path / "one")
    assert_same(rows, run, tmp_path / "one", 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "zero1", "zero2", "zero3", "fsdp"])
def test_thirty_steps_however_they_are_wrapped(launch, rows, references, root, tmp_path, kind):
    run = tmp_path / "run"
    launch(*LONG, "--output", run, script="launch/train.py", ranks=3, **settings(root, kind))
    assert_same(rows, run, references(LONG, 1), 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "zero2", "zero3", "fsdp"])
def test_accumulated(launch, tiny, rows, root, tmp_path, kind):
    """Without BatchNorm: 6 + 5, 6 + 5 and 5 + 5, in micro-batches of 6; evaluations make as many passes on all."""
    flags = [*tiny, "--batch-size", 32, "--epochs", 1, "--output"]
    launch(*flags, tmp_path / "one")
    micro = ["--parallel.micro-batch-size", 2 if kind in ("zero3", "fsdp") else 6]
    launch(*flags, tmp_path / "three", *micro, ranks=3, **settings(root, kind))
    assert_same(rows, tmp_path / "three", tmp_path / "one", 9)


@pytest.mark.slow
def test_fewer_images_than_ranks_are_refused_on_all(launch, tiny, tmp_path):
    done = launch(*tiny[:4], "--batch-size", 1, "--output", tmp_path / "run", ranks=2, code=1)
    assert done.stderr.count("--batch-size 1 is less than an image for each of 2 ranks: use 2 or more") == 1
    assert not (tmp_path / "run").exists()
