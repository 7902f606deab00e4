"""Recompute changes memory, and nothing else: outputs, gradients, BatchNorm statistics, dropout masks."""

import copy

import pytest
import torch
from torch import nn

from engine.step.recompute import recompute_blocks, statistics_suspended


class Net(nn.Module):
    """Two blocks with BatchNorm and dropout, and a head."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(dropout))
                for _ in range(2)
            )
        )

    def blocks(self):
        yield from self.stages

    def forward(self, images):
        return self.stages(images).mean(dim=(2, 3))


def run(model: nn.Module, steps: int = 3):
    torch.manual_seed(1)
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for _ in range(steps):
        output = model(images)
        output.square().sum().backward()
    return output, images.grad, [p.grad for p in model.parameters()], list(model.buffers())


def test_recompute_is_exact():
    plain = Net()
    other = copy.deepcopy(plain)
    assert recompute_blocks(other) == 2
    for left, right in zip(run(plain), run(other), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_statistics_are_updated_once():
    """Without the context they are updated twice (pytorch issue 96136): this test would see 2."""
    model = Net()
    recompute_blocks(model)
    run(model, steps=1)
    assert [norm.num_batches_tracked.item() for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)] == [1, 1]


def test_frozen_statistics_are_still_used():
    """BatchNorm in eval mode normalises with its running statistics, in the recompute too."""
    plain = Net(dropout=0.0)
    run(plain, steps=1)
    plain.eval()
    plain.zero_grad()
    other = copy.deepcopy(plain)
    recompute_blocks(other)
    for left, right in zip(run(plain), run(other), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_suspension_is_lifted_after_an_error():
    norm = nn.BatchNorm2d(3)
    mean = norm.running_mean
    with pytest.raises(KeyError), statistics_suspended([norm]):
        assert norm.running_mean is not mean
        raise KeyError
    assert norm.running_mean is mean and norm.num_batches_tracked.item() == 0


def test_recompute_saves_less():
    def saved(model) -> int:
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(torch.randn(4, 3, 16, 16))
        del output
        return sum(storages.values())

    plain, other = Net(), Net()
    recompute_blocks(other)
    assert saved(other) < saved(plain) / 2


def test_no_gradient_no_checkpoint():
    model = Net()
    recompute_blocks(model)
    with torch.no_grad():
        assert not model(torch.randn(2, 3, 4, 4)).requires_grad


@pytest.mark.slow
def test_recompute_under_compile():
    """Compiled: same gradients, statistics updated once, no graph break."""
    plain = Net(dropout=0.0)
    other = copy.deepcopy(plain)
    recompute_blocks(other)
    other.compile(fullgraph=True)
    for left, right in zip(run(plain), run(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    assert [norm.num_batches_tracked.item() for norm in other.modules() if isinstance(norm, nn.BatchNorm2d)] == [3, 3]
