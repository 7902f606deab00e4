"""Every recompute policy gives the plain network's outputs, gradients, statistics and dropout masks."""

import copy

import pytest
import torch
from torch import nn

from engine.plan.memory.trace import Unit
from engine.plan.segments import best_segments, inside
from engine.step.offload import Offload
from engine.step.recompute import Policy, apply_policy, by_block, first_blocks


class Block(nn.Module):
    """Two layer groups, each a convolution with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True), nn.Dropout(0.3))
        self.second = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.3))

    def forward(self, features):
        return features + self.second(self.first(features))


class Net(nn.Module):
    """Four blocks and a head; the output of the second block is read beside the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(Block() for _ in range(4)))

    def blocks(self):
        yield from self.stages

    def forward(self, images):
        middle = self.stages[1](self.stages[0](images))
        side = middle.mean(dim=(2, 3))
        return self.stages[3](self.stages[2](middle)).mean(dim=(2, 3)) + side


POLICIES = {
    "block": by_block(4),
    "first": first_blocks(2),
    "segments": Policy("segments", ((0, 2), (2, 4))),
    "nested": Policy("nested", ((0, 2), (2, 4)), nested=True),
    "offload": Policy(offload=True),
    "block and offload": Policy("block", by_block(4).segments, offload=True),
    "nested and offload": Policy("nested", ((0, 2), (2, 3)), nested=True, offload=True),
}


def train(model: nn.Module, policy: Policy = Policy(), steps: int = 3, autocast: bool = False):  # noqa: B008
    torch.manual_seed(1)
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for _ in range(steps):
        with policy.around_forward(list(model.parameters())), torch.autocast("cpu", enabled=autocast):
            output = model(images)
        output.float().square().sum().backward()
    return output, images.grad, [parameter.grad for parameter in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_exact(name, autocast, monkeypatch):
    monkeypatch.setattr("engine.step.offload.SMALLEST", 0)
    plain = Net()
    other = apply_policy(copy.deepcopy(plain), POLICIES[name])
    assert other.state_dict().keys() == plain.state_dict().keys()
    for left, right in zip(
        train(plain, autocast=autocast), train(other, POLICIES[name], autocast=autocast), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    counters = [norm.num_batches_tracked.item() for norm in other.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert counters == [3] * 8


def test_a_segment_over_a_tapped_output_would_be_wrong():
    """What reads the second block's output would get the fourth's: the reason why taps end segments."""
    plain = Net()
    other = apply_policy(copy.deepcopy(plain), Policy("segments", ((0, 4),)))
    assert not torch.equal(train(plain)[0], train(other)[0])


def test_segments_that_are_not_there():
    with pytest.raises(ValueError, match="no segment 3:5 in a network of 4 units"):
        apply_policy(Net(), Policy("segments", ((3, 5),)))


def test_offload_copies_a_storage_once_and_leaves_parameters():
    moved = []

    def store(tensor):
        moved.append(tensor.numel())
        return tensor.clone()

    layer = nn.Linear(4, 4)
    images = torch.randn(2, 4)
    with Offload(list(layer.parameters()), store, lambda copy, device: copy.clone(), smallest=0):
        hidden = layer(images).relu_()
        output = (hidden * hidden + layer(hidden)).sum()
    output.backward()
    assert sorted(moved) == [8, 8]  # the images and, once for three operators, the hidden layer


def test_offload_keeps_what_was_saved_before_an_in_place_change():
    first = torch.randn(4, requires_grad=True)
    with Offload(smallest=0):
        copy_of_first = first * 1
        product = copy_of_first.exp()  # saves its result
        product_twice = product * 2
        output = product_twice.sigmoid_().sum()  # saves what it wrote into product_twice
    output.backward()
    expected = first.detach().clone().requires_grad_()
    (expected.exp() * 2).sigmoid().sum().backward()
    torch.testing.assert_close(first.grad, expected.grad)


def test_cut_of_equal_units_is_a_square_root():
    """n equal units: the sum of n / k outputs and k insides is least near √n."""
    units = [Unit(str(index), inner=0.0, output=1.0, flops=1.0, tapped=False) for index in range(16)]
    cut = best_segments(units).segments
    assert cut[0][0] == 0 and cut[-1][1] == 16
    assert [stop for _, stop in cut[:-1]] == [start for start, _ in cut[1:]]
    costs = inside(units)
    assert len(cut) + max(costs[start, stop] for start, stop in cut) == 7  # 4 outputs and 3 within


def test_cut_keeps_taps_and_isolates_what_is_large():
    sizes = [(100, 10), (100, 10), (1, 1), (1, 1), (1, 1)]
    units = [Unit("", inner, output, 1.0, tapped=index == 3) for index, (inner, output) in enumerate(sizes)]
    cut = best_segments(units).segments
    assert (0, 1) in cut and (1, 2) in cut
    assert any(stop == 4 for _, stop in cut)


@pytest.mark.parametrize("seed", range(4))
def test_cut_is_the_best_of_all(seed):
    """Against every partition of a chain of 7."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (7, 2), generator=generator).tolist()
    units = [Unit("", inner, output, 1.0, tapped=index == 4) for index, (inner, output) in enumerate(sizes)]
    costs = inside(units)

    def peak(segments) -> float:
        return sum(units[stop - 1].output for _, stop in segments) + max(costs[a, b] for a, b in segments)

    every = []
    for mask in range(2**6):
        ends = [index + 1 for index in range(6) if mask >> index & 1] + [7]
        every.append(peak(list(zip([0, *ends[:-1]], ends, strict=True))))
    assert peak(best_segments(units).segments) == min(every)
