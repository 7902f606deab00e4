"""Fine-tuning over two processes: what is frozen stays as it is under DDP and ZeRO, and both end with one weight."""

import pytest
import torch
from safetensors.torch import load_file

from .test_distributed import zero

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3))], ids=lambda s: f"zero{s}"
)
def test_two_processes_train_what_one_does(launch, here, tiny, root, tmp_path, stage):
    shape = [*tiny, "--epochs", 1, "--finetune", "1", "--optim.backbone-lr", 0.004, "--optim.layer-decay", 0.5]
    here(*shape, "--output", tmp_path / "one")
    environment = zero(root, stage) if stage else {}
    done = launch(*shape, "--output", tmp_path / "two", ranks=2, **environment)
    assert "frozen: " in done.stdout
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    here(*tiny, "--epochs", 1, "--finetune", "head", "--output", tmp_path / "head")
    head = load_file(tmp_path / "head" / "model.safetensors")
    frozen = [name for name in one if name.startswith(("stem.", "stages.0."))]
    assert frozen and all(torch.equal(head[name], two[name]) for name in frozen), "both are as they were drawn"
    assert not torch.equal(head["stages.1.0.weight"], two["stages.1.0.weight"])
