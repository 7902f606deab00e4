"""A run that changes how it is spread on its way ends where one that never did ends."""

import pytest

from tests.launch.apart import apart
from tests.launch.test_distributed import compare, zero
from tests.launch.test_same_function import FSDP

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_fsdp_one_process_fsdp_ddp(launch, tiny, rows, alone, tmp_path):
    """Weights and momentum, from parts to a whole and back."""
    run = tmp_path / "run"
    launch(*tiny, "--epochs", 2, "--output", run, ranks=2, **FSDP)
    assert (run / "checkpoints" / "step-00000014" / "shards" / "model-00002-of-00002.safetensors").is_file()
    launch("--resume", run, "--epochs", 3)
    launch("--resume", run, "--epochs", 4, ranks=2, **FSDP)
    launch("--resume", run, "--epochs", 5, ranks=2)
    compare(rows, run, alone)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adan"])
def test_every_sharding_takes_over_from_every_other(launch, tiny, rows, root, tmp_path, optimizer):
    """ZeRO-2 on two, ZeRO-3 on three, one process, ZeRO-1, FSDP2, an offload: weights, moments, counts.

    Adan, whose count is its groups', does not run under ZeRO-3. It divides by the roots of small sums, so that numbers
    whose gradients are next to nothing go their own way: its weights are held by their norm.
    """
    flags = [*tiny, "--optimizer", optimizer, "--lr", 0.01 if optimizer == "sgd" else 0.001]
    launch(*flags, "--epochs", 6, "--output", tmp_path / "alone")
    run = tmp_path / "run"
    launch(*flags, "--epochs", 1, "--output", run, ranks=2, **zero(root, 2))
    launch("--resume", run, "--epochs", 2, ranks=3, **zero(root, 1 if optimizer == "adan" else 3))
    launch("--resume", run, "--epochs", 3)
    launch("--resume", run, "--epochs", 4, ranks=2, **zero(root, 1))
    launch("--resume", run, "--epochs", 5, ranks=2, **FSDP)
    launch("--resume", run, "--epochs", 6, ranks=2, **zero(root, "2_offload"))
    if optimizer == "adan":
        found = apart(rows, run, tmp_path / "alone", 42)
        assert found.losses <= 1e-4 and found.weights <= 1e-3, found
    else:
        compare(rows, run, tmp_path / "alone")
