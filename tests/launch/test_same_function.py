"""However the ranks are wrapped, the steps of a network with BatchNorm are those of one process."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import archs
from tests.launch.apart import apart
from tests.launch.test_distributed import zero

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FLAGS = ["--arch", "convnet_bn", "--image-size", "32", "--batch-size", "32", "--data.limit", "960", "--epochs", "1"]
FLAGS += ["--optimizer", "sgd", "--lr", "0.0002", "--optim.momentum", "0", "--precision", "fp32", "--sync-bn"]
FLAGS += ["--log.every", "1", "--log.no-plots", "--log.monitor-interval", "0"]
DEEP = [*FLAGS, "--arch", "resnet18", "--data.limit", "64"]
"""Two steps: at 32 pixels this network makes of a difference of 1e-7 in its weights one of 1e-3 in the loss within five
steps, in one process too, so that more of them compare rounding."""
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
KINDS = [(2, ""), (4, ""), (2, "zero1"), (2, "zero2"), (2, "zero3"), (2, "fsdp")]


def settings(root, kind: str) -> dict[str, str]:
    return zero(root, kind[-1]) if kind.startswith("zero") else FSDP if kind == "fsdp" else {}


@pytest.mark.parametrize(
    ("flags", "ranks", "kind", "against"),
    [
        *[(FLAGS, ranks, kind, 1) for ranks, kind in KINDS],
        *[(DEEP, ranks, kind, 1) for ranks, kind in KINDS if ranks == 2],
        *[([*FLAGS, "--parallel.micro-batch-size", 8], 2, kind, 2) for kind in ("zero2", "fsdp")],
    ],
)
def test_steps_are_the_same(launch, rows, references, root, tmp_path, flags, ranks, kind, against):
    """Losses within 1e-5 and weights within 1e-4 of their norm: 2 × 16, 4 × 8, 2 × 8 × 2, ZeRO, FSDP2.

    2 × 8 × 2 are compared with each other: which images BatchNorm sees together is another matter in one process.
    """
    run, reference = tmp_path / "run", references(flags, against)
    launch(*flags, "--output", run, script="launch/train.py", ranks=ranks, **settings(root, kind))
    found = apart(rows, run, reference, 2 if flags is DEEP else 30)
    print(f"{flags[1]} {kind or 'ddp'} on {ranks}: {found}")
    assert found.losses <= 1e-5 and found.weights <= 1e-4
    if flags is not DEEP:
        distance, size, kept = found.distance, found.size, list(found.expected)
        assert all(distance[name] <= 1e-4 * size[name] for name in kept), max(kept, key=lambda name: distance[name])
        torch.manual_seed(0)
        begun = archs.build("convnet_bn", 10, image_size=32).state_dict()
        moved = math.hypot(*((found.expected[name] - begun[name]).norm().item() for name in kept))
        assert moved > 50 * math.hypot(*distance.values()), "what was trained is much more than what differs"


def test_statistics_are_fp32_under_autocast(launch, root, tmp_path):
    """Under FSDP2 in bf16 too, whose own mixed precision would cast BatchNorm's weights."""
    run = tmp_path / "run"
    flags = [*FLAGS, "--precision", "bf16", "--data.limit", 128]
    launch(*flags, "--output", run, script="launch/train.py", ranks=2, **FSDP)
    kept = load_file(run / "model.safetensors")
    norms = {name: tensor for name, tensor in kept.items() if "running" in name or "bn" in name}
    assert norms and all(tensor.dtype in (torch.float32, torch.int64) for tensor in norms.values())
    assert all(tensor.isfinite().all() for tensor in norms.values())


@pytest.mark.parametrize("sent", ["none", "bf16"])
@pytest.mark.parametrize("kind", ["", "zero1", "fsdp"])
def test_gradients_are_exchanged_once_a_step(launch, tiny, root, tmp_path, kind, sent):
    """Two of three micro-batches send nothing; the last one the gradients of the parameters, or half of their bytes."""
    environment = settings(root, kind)
    flags = ["--arch", "counting", *tiny[2:], "--batch-size", 48, "--data.limit", 240, "--epochs", 1]
    flags += ["--parallel.micro-batch-size", 8, "--output", tmp_path / "run", "--parallel.gradient-compression", sent]
    path = tmp_path / "counted.json"
    launch(*flags, script="tests/launch/counted_exchange.py", ranks=2, COUNTED=str(path), **environment)
    counted = json.loads(path.with_suffix(".0").read_text())
    size = sum(tensor.numel() * 4 for tensor in load_file(tmp_path / "run" / "model.safetensors").values())
    assert len(counted) == 15, counted
    assert all(bytes_ == 0 for place, bytes_ in enumerate(counted) if place % 3 != 2), counted
    assert all(bytes_ == counted[2] for bytes_ in counted[2::3]), counted
    share = counted[2] / size * (1 if sent == "none" else 2)
    print(f"{kind or 'ddp'} {sent}: {share:.3f} of the gradients' bytes")
    assert 0.9 <= share <= 1.1, (counted, size)
