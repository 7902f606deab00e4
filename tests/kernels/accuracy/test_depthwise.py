"""Depthwise convolution against float64: every size, stride, padding, activation and dtype, and bad numbers."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import Prologue, depthwise_conv2d

SHAPE = (2, 20, 4, 5)


@pytest.fixture
def check(check_convolution):
    """`check_convolution` for the depthwise operator."""

    def run(shape, size, stride, padding, act="silu", **options):
        check_convolution(
            shape, shape[1], size, stride, padding, shape[1], act, operation="depthwise_conv2d", **options
        )

    return run


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "padding"), [(3, 1), (3, (0, 2)), (5, 2), (7, 3)])
def test_forward_and_all_gradients(check, size, stride, padding):
    check((1, 20, 5, 6), size, stride, padding)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "padding"), [(3, 0), (3, 4), (5, 0), (5, (0, 3)), (5, 5), (7, 0), (7, (7, 2))])
def test_any_padding(check, size, stride, padding):
    check((1, 20, 8, 9), size, stride, padding)


@pytest.mark.parametrize("act", ["identity", "relu", "relu6", "leaky_relu", "hardswish"])
def test_every_activation(check, act):
    check(SHAPE, 3, 1, 1, act)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_half_precision(check, size, stride, dtype):
    check(SHAPE, size, stride, size // 2, "relu6", dtype=dtype)


@pytest.mark.parametrize(("affine", "statistics"), [(False, True), (True, False), (False, False)])
def test_each_fusion_can_be_left_out(check, affine, statistics):
    check((1, 20, 4, 5), 3, 1, 1, "relu", affine=affine, statistics=statistics)
    check((1, 20, 3, 4), 5, 1, 1, "identity", affine=affine, statistics=statistics)


def test_more_channels_than_a_program_takes(check):
    check((1, 40, 4, 4), 3, 1, 1)


def drawn(sizes, *most):
    """Random cases with kernels of `sizes` and at most these channels, height and width."""
    channels, height, width = most
    return given(
        shape=st.tuples(st.integers(1, 2), st.integers(1, channels), st.integers(3, height), st.integers(3, width)),
        size=st.sampled_from(sizes),
        stride=st.sampled_from([1, 2]),
        pads=st.tuples(*[st.integers(2, 4)] * 2),
    )


quiet = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture], "derandomize": True}


@settings(max_examples=3, **quiet)
@drawn([3], 33, 5, 10)
def test_drawn_shapes(check, shape, size, stride, pads):
    check(shape, size, stride, pads, cancels=True)


@pytest.mark.slow
@settings(max_examples=40, **quiet)
@drawn([3, 5, 7], 40, 9, 19)
def test_more_drawn_shapes(check, shape, size, stride, pads):
    check(shape, size, stride, pads, cancels=True)


def test_variance_survives_a_large_mean(device):
    """Mean over deviation 1e4, where E[y²] - E[y]² in fp32 has no digit left."""
    x = 1e4 + torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(16, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    y, statistics = depthwise_conv2d(x.to(device), weight.to(device), 1, 1, statistics=True)
    exact = y.double().cpu().var((0, 2, 3), correction=0)
    found = (statistics.m2.cpu() / statistics.count).double()
    assert ((found - exact).abs() / exact).max() < 1e-3
    naive = (y.float().cpu() ** 2).mean((0, 2, 3)) - y.float().cpu().mean((0, 2, 3)) ** 2
    assert ((naive.double() - exact).abs() / exact).max() > 1e-3


def test_padding_is_zero_after_the_prologue(device):
    """act(BN(0)) is not 0: with constant images a corner sees four taps, not nine."""
    ones = torch.ones(2, device=device)
    prologue = Prologue(0 * ones, ones, 3 * ones, "relu")
    y = depthwise_conv2d(
        torch.zeros(1, 2, 4, 4, device=device), torch.ones(2, 1, 3, 3, device=device), 1, 1, prologue=prologue
    )
    assert y[0, 0, 0, 0].item() == 12 and y[0, 0, 1, 1].item() == 27


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_bad_numbers_reach_the_outputs_they_feed_and_no_others(device, bad, act):
    x = torch.ones(1, 16, 6, 6, device=device)
    x[0, 3, 2, 2] = bad
    ones = torch.ones(16, device=device)
    leaf = x.requires_grad_()
    y, statistics = depthwise_conv2d(
        leaf,
        torch.ones(16, 1, 3, 3, device=device),
        1,
        1,
        prologue=Prologue(0 * ones, ones, ones, act),
        statistics=True,
    )
    touched = torch.zeros(1, 16, 6, 6, dtype=torch.bool)
    touched[0, 3, 1:4, 1:4] = True
    assert torch.equal(~y.isfinite().cpu(), touched)
    assert (~statistics.m2.isfinite()).nonzero().flatten().tolist() == [3]
    y.sum().backward()
    assert leaf.grad is not None and leaf.grad[0, 4].isfinite().all()


def test_empty_batch(device):
    x = torch.empty(0, 16, 6, 6, device=device).requires_grad_()
    weight = torch.ones(16, 1, 3, 3, device=device).requires_grad_()
    y, statistics = depthwise_conv2d(x, weight, 2, 1, statistics=True)
    y.sum().backward()
    assert y.shape == (0, 16, 3, 3) and statistics.count == 0
    assert torch.equal(weight.grad.cpu(), torch.zeros(16, 1, 3, 3))
    assert torch.equal(statistics.mean.cpu(), torch.zeros(16))


def test_layouts_are_made_right(device):
    """A contiguous input, a transposed weight and an expanded gradient give what channels-last ones do."""
    x = torch.randn(2, 16, 5, 6, generator=torch.Generator().manual_seed(0)).to(device)
    weight = torch.randn(3, 3, 1, 16, generator=torch.Generator().manual_seed(1)).permute(3, 2, 0, 1).to(device)
    results = []
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        leaf = images.detach().requires_grad_()
        depthwise_conv2d(leaf, weight, 1, 1).sum().backward()
        results.append(leaf.grad)
    assert torch.equal(*results)
