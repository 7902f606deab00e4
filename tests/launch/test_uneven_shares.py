"""A batch that does not divide over the ranks: shares differ by one, and the steps are those of one process."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.launch.test_same_function import FLAGS, settings

pytestmark = pytest.mark.distributed

SHORT = [*FLAGS, "--data.limit", 66]
"""11 + 11 + 10, twice, and a tail of two images: BatchNorm may not count what the third rank runs instead."""
LONG = [*FLAGS, "--data.limit", 930]
"""30 steps, and the last one of two images."""


@pytest.fixture(scope="session")
def one_process(launch, tmp_path_factory):
    """The runs that the others are compared with, each made once."""
    made: dict[tuple, Path] = {}

    def reference(flags: list) -> Path:
        key = tuple(map(str, flags))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("one_process") / "run"
            launch(*flags, "--output", made[key], script="launch/train.py")
        return made[key]

    return reference


def root_of(tensor: Tensor) -> float:
    return math.sqrt(tensor.numel())


def assert_same(rows, run: Path, reference: Path, steps: int) -> None:
    """Losses within 1e-5, weights and running statistics within 1e-4 of their norm, the same evaluation."""
    ours, theirs = rows(run, "step"), rows(reference, "step")
    assert len(ours) == len(theirs) == steps
    apart = max(abs(left["loss"] - right["loss"]) for left, right in zip(ours, theirs, strict=True))
    expected, found = load_file(reference / "model.safetensors"), load_file(run / "model.safetensors")
    kept = [name for name, tensor in expected.items() if tensor.is_floating_point()]
    distance = {name: (found[name].double() - expected[name].double()).norm().item() for name in kept}
    size = {name: expected[name].double().norm().item() for name in kept}
    far = math.hypot(*distance.values()) / math.hypot(*size.values())
    print(f"losses within {apart:.1e}, weights within {far:.1e}")
    assert apart <= 1e-5 and far <= 1e-4
    # BatchNorm's biases begin at 0 and move by 1e-4 in 30 steps of 2e-4, by sums that cancel: 3e-7 of it is rounding.
    beyond = {
        name: distance[name] for name in kept if distance[name] > 1e-4 * size[name] + 1e-7 * root_of(expected[name])
    }
    assert not beyond, beyond
    left, right = rows(run, "epoch")[-1], rows(reference, "epoch")[-1]
    assert left["train_images"] == right["train_images"] and left["val_images"] == right["val_images"]
    assert left["val_loss"] == pytest.approx(right["val_loss"], abs=1e-4)


def test_three_ranks_share_32_images(launch, rows, one_process, tmp_path):
    """And a tail of two."""
    run = tmp_path / "run"
    launch(*SHORT, "--output", run, script="launch/train.py", ranks=3)
    assert_same(rows, run, one_process(SHORT), 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "zero1", "zero2", "zero3", "fsdp"])
def test_thirty_steps_however_they_are_wrapped(launch, rows, one_process, root, tmp_path, kind):
    run = tmp_path / "run"
    launch(*LONG, "--output", run, script="launch/train.py", ranks=3, **settings(root, kind))
    assert_same(rows, run, one_process(LONG), 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "zero2", "zero3", "fsdp"])
def test_accumulated(launch, tiny, rows, root, tmp_path, kind):
    """Without BatchNorm: 6 + 5, 6 + 5 and 5 + 5, in micro-batches of 6; evaluations make as many passes on all."""
    flags = [*tiny, "--batch-size", 32, "--epochs", 1, "--output"]
    launch(*flags, tmp_path / "one")
    micro = ["--parallel.micro-batch-size", 2 if kind in ("zero3", "fsdp") else 6]
    launch(*flags, tmp_path / "three", *micro, ranks=3, **settings(root, kind))
    assert_same(rows, tmp_path / "three", tmp_path / "one", 9)


def test_fewer_images_than_ranks_are_refused_on_all(launch, tiny, tmp_path):
    done = launch(*tiny[:4], "--batch-size", 1, "--output", tmp_path / "run", ranks=2, code=1)
    assert done.stderr.count("--batch-size 1 is less than an image for each of 2 ranks: use 2 or more") == 1
    assert not (tmp_path / "run").exists()
