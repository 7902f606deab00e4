"""What is counted: storages, not tensors; from allocation to free."""

import pytest
import torch
from torch import nn

from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import DeviceModel, Extra, Tracker

KIB = 1024


def peak_of(work) -> int:
    tracker = Tracker()
    with tracker:
        tracker.begin()
        tracker.mark("forward")
        work()
    return tracker.trace().peak(1)


def test_views_and_in_place_results_are_free():
    def work():
        one = torch.zeros(256)  # 1 KiB
        one.view(16, 16).t().add_(1).relu_()

    assert peak_of(work) == KIB


class Fork(nn.Module):
    """Three ways from one map, whose gradients meet there."""

    def forward(self, images):
        features = images * 2
        return features.relu() + features.sigmoid() + features.tanh()


@pytest.mark.parametrize(("in_place", "sums"), [(True, 0), (False, 2)])
def test_gradients_that_meet_are_added_in_the_first_one_s_place(in_place, sums, monkeypatch):
    """As autograd does it while no dispatch mode is on: what the profiler sees; under one it takes memory for them."""
    monkeypatch.setattr(Tracker, "sums_in_place", in_place)
    images, tracker = torch.randn(4, 256, requires_grad=True), Tracker()
    loss = Fork()(images).sum()
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    really = sum(event.self_cpu_memory_usage >= 4 * KIB - 4 for event in profile.events())
    images.grad = None
    with tracker:
        tracker.begin()
        tracker.mark("forward")
        loss = Fork()(images).sum()
        tracker.mark("backward")
        before = len(tracker.events)
        loss.backward()
    maps = [event for event in tracker.events[before:] if tracker.storages.nbytes[abs(event) - 1] == 4 * KIB]
    assert sum(event > 0 for event in maps) == really + sums


def test_what_is_freed_does_not_count_later():
    def work():
        first = torch.zeros(1024)
        second = first * 2
        del first
        third = second + 1
        del second, third

    assert peak_of(work) == 2 * 4 * KIB


def test_an_address_that_is_used_again_is_another_storage():
    def work():
        for _ in range(20):
            torch.zeros(1024)

    assert peak_of(work) == 4 * KIB


def test_categories_are_settled_afterwards():
    tracker = Tracker()
    weight = nn.Parameter(torch.ones(128))
    tracker.hold([weight], Category.PARAMETERS)
    with tracker:
        tracker.begin()
        tracker.mark("forward")
        loss = (weight * 2).sum()
        tracker.mark("backward")
        loss.backward()
        tracker.settle([weight.grad], Category.GRADIENTS)
    live = tracker.trace().timeline(1).live
    assert live[Category.PARAMETERS].max() == live[Category.GRADIENTS].max() == 512


def test_extras_live_as_long_as_they_are_said_to():
    class Device(DeviceModel):
        def extras(self, function, arguments, results):
            if function is torch.ops.aten.mul.Tensor:
                yield Extra(4 * KIB, Category.WORKSPACE)
                yield Extra(1 * KIB, Category.SAVED, like=results[0])

    tracker = Tracker(device=Device())
    with tracker:
        tracker.begin()
        tracker.mark("forward")
        product = torch.ones(256) * 2
        later = product + 1
        del product
        last = later + 1
        del later, last
    total = tracker.trace().timeline(1).total
    # the ones, the product, the workspace and the reserve
    assert total.max() == (1 + 1 + 4 + 1) * KIB
    assert total[-1] == 0


@pytest.mark.parametrize("sizes", [(64, 32)])
def test_operators_have_flops_and_traffic(sizes):
    rows, columns = sizes
    tracker = Tracker()
    left, right = torch.ones(rows, columns), torch.ones(columns, rows)
    with tracker:
        tracker.begin()
        tracker.mark("forward")
        left @ right
    operators = tracker.trace().operators
    assert operators.names == ["mm"]
    assert operators.flops.at(1)[0] == 2 * rows * columns * rows
    assert operators.traffic.at(1)[0] == 4 * (2 * rows * columns + rows * rows)


@pytest.mark.parametrize("groups", [1, 8])
def test_a_backward_convolution_is_twice_its_forward_grouped_or_not(groups):
    tracker = Tracker()
    images, weight = torch.ones(2, 8, 6, 6, requires_grad=True), torch.ones(8, 8 // groups, 3, 3, requires_grad=True)
    with tracker:
        tracker.begin()
        tracker.mark("forward")
        torch.nn.functional.conv2d(images, weight, padding=1, groups=groups).sum().backward()
    operators = tracker.trace().operators
    done = dict(zip(operators.names, operators.flops.at(1), strict=True))
    assert done["convolution_backward"] == 2 * done["convolution"] == 4 * 2 * 8 * 36 * 9 * (8 // groups)
