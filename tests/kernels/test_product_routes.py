"""Who multiplies in a pointwise layer, at the shapes of MobileNetV2 and Xception."""

import pytest

from kernels.product_routes import (
    LEAST_PIXELS,
    Sizes,
    backward_by_library,
    forward_by_library,
    keeps_operands,
    one_kernel,
)

FEW = LEAST_PIXELS // 2


def asked(channels, outputs, opened=False, groups=1, shuffle=1, pixels=LEAST_PIXELS):
    """Forward by the library, and of the backward pass: one kernel, a kernel and a product, or the library."""
    layer = Sizes(channels, outputs, groups, shuffle, opened)
    ways = {"one": one_kernel(layer), "kept": keeps_operands(layer), "library": backward_by_library(layer)}
    assert sum(ways.values()) <= 1
    return forward_by_library(layer, pixels), next((name for name, taken in ways.items() if taken), "two")


@pytest.mark.parametrize(
    ("channels", "outputs", "options", "wanted"),
    [
        (16, 96, {}, (False, "one")),
        (24, 144, {}, (False, "one")),
        (64, 384, {}, (False, "library")),
        (32, 16, {"opened": True}, (False, "one")),
        (144, 24, {"opened": True}, (False, "kept")),
        (576, 96, {"opened": True}, (False, "library")),
        (960, 320, {"opened": True, "pixels": FEW}, (True, "library")),
        (728, 728, {}, (True, "library")),
        (128, 128, {}, (True, "library")),
        (128, 128, {"pixels": FEW}, (False, "library")),
        (128, 128, {"opened": True}, (False, "library")),
        (480, 480, {"groups": 2}, (False, "two")),
        (480, 480, {"shuffle": 3}, (False, "two")),
    ],
)
def test_who_multiplies(channels, outputs, options, wanted):
    assert asked(channels, outputs, **options) == wanted


def test_without_products_of_four_warps_only_small_layers_are_one_kernel():
    layer = Sizes(24, 144, 1, 1, False)
    assert one_kernel(layer) and not one_kernel(layer, blocks=False)
    assert backward_by_library(layer, blocks=False) and not backward_by_library(layer)
