"""A run that changes how it is spread on its way ends where one that never did ends."""

import pytest

from tests.launch.test_distributed import compare
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
