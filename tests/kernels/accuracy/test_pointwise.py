"""Pointwise convolution against float64: groups, shuffles, one pass and two, dtypes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import pointwise_conv2d


@pytest.fixture
def check(check_convolution):
    """`check_convolution` for the pointwise operator."""

    def run(shape, outputs, groups=1, act="silu", **options):
        check_convolution(shape, outputs, 1, 1, 0, groups, act, operation="pointwise_conv2d", **options)

    return run


@pytest.mark.parametrize(("groups", "shuffle"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 4), (1, 4), (2, 4)])
def test_groups_and_shuffles(check, groups, shuffle):
    check((2, 32, 5, 7), 48, groups, shuffle=shuffle)


@pytest.mark.parametrize("act", ["identity", "relu", "relu6", "leaky_relu", "hardswish"])
def test_every_activation(check, act):
    check((1, 20, 5, 7), 36, act=act)


def test_two_passes_where_the_weight_is_large(check):
    check((1, 150, 5, 5), 140, act="relu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(check, dtype):
    check((2, 20, 5, 7), 36, act="relu6", dtype=dtype)
    check((1, 132, 5, 5), 80, act="relu6", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "outputs"), [(100, 140), (260, 256)])
def test_products_of_the_library(check, channels, outputs, dtype):
    """Many channels on both sides: the backward pass alone, and both passes."""
    check((2, channels, 3, 5), outputs, act="relu6", dtype=dtype, rounds="products")
    check((1, channels, 3, 3), outputs, affine=False, statistics=False, act="identity", dtype=dtype, rounds="products")
    check((1, channels, 3, 3), outputs, affine=False, act="silu", dtype=dtype, rounds="products")


@pytest.mark.parametrize(("channels", "outputs"), [(144, 24), (192, 80)])
@pytest.mark.parametrize("statistics", [True, False])
def test_operands_that_the_kernel_for_dx_leaves(check, channels, outputs, statistics):
    """A prologue over many channels and few outputs: x' and dY are stored for the library's product, and the images of
    16 pixels divide into whole tiles where those of 35 do not."""
    for images in ((2, channels, 5, 7), (8, channels, 4, 4)):
        check(images, outputs, act="relu6", statistics=statistics, dtype=torch.bfloat16)


@pytest.mark.parametrize("affine", [False, True])
def test_one_pass_by_blocks_of_outputs_over_more_tiles_than_walkers(check, affine):
    check((2, 24, 12, 13), 136, act="relu6", affine=affine, dtype=torch.float16)


@pytest.mark.parametrize(("channels", "outputs"), [(16, 96), (128, 80)])
def test_tiles_without_a_rest_that_take_several_output_blocks(check, channels, outputs):
    """Masks are left out, and what was loaded once meets all of a program's output blocks."""
    check((2, channels, 16, 16), outputs, act="relu6", dtype=torch.bfloat16)


@pytest.mark.parametrize(("affine", "statistics"), [(False, True), (True, False), (False, False)])
def test_each_fusion_can_be_left_out(check, affine, statistics):
    check((2, 20, 5, 7), 12, act="relu", affine=affine, statistics=statistics)
    check((1, 130, 5, 5), 132, act="identity", affine=affine, statistics=statistics)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    images=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)),
    groups=st.integers(1, 4),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_drawn_shapes(check, images, groups, widths):
    batch, height, width = images
    check((batch + 1, groups * widths[0], height + 1, width), groups * widths[1], groups, cancels=True)


def test_products_are_summed_in_fp32_and_leave_the_setting_as_it_was():
    products = pytest.importorskip("kernels.device.products")
    flags = torch.backends.cuda.matmul
    names = [
        *products.REDUCTIONS,
        *(f"{name}_split_k" for name in products.REDUCTIONS if hasattr(flags, f"{name}_split_k")),
    ]

    def read():
        return [getattr(flags, name) for name in names]

    before = read()
    with products.sums_in_fp32():
        assert read()[:2] == [False, False] and read()[2:] == before[2:]
    assert read() == before


def test_variance_survives_a_large_mean(device):
    x = 1e4 + torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    y, statistics = pointwise_conv2d(x.to(device), torch.eye(16, device=device)[:, :, None, None], statistics=True)
    exact = y.double().cpu().var((0, 2, 3), correction=0)
    assert (((statistics.m2.cpu() / statistics.count) - exact).abs() / exact).max() < 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_in_their_pixel(device, bad):
    x = torch.ones(1, 16, 4, 4, device=device)
    x[0, 3, 2, 2] = bad
    y = pointwise_conv2d(x, torch.ones(24, 16, 1, 1, device=device))
    touched = torch.zeros(1, 24, 4, 4, dtype=torch.bool)
    touched[0, :, 2, 2] = True
    assert torch.equal(~y.isfinite().cpu(), touched)


def test_empty_batch(device):
    weight = torch.ones(24, 16, 1, 1, device=device).requires_grad_()
    y, statistics = pointwise_conv2d(torch.empty(0, 16, 6, 6, device=device), weight, statistics=True)
    y.sum().backward()
    assert y.shape == (0, 24, 6, 6) and statistics.count == 0
    assert torch.equal(weight.grad.cpu(), torch.zeros(24, 16, 1, 1))
