"""Xception against its paper, arXiv:1610.02357."""

import pytest
import torch
from torch import nn

import archs
from archs.networks.inception.xception import XceptionBlock


@pytest.fixture(scope="module")
def shell():
    with torch.device("meta"):
        return archs.build("xception", 10)


def test_parameters(shell):
    assert archs.lookup("xception").parameters == 22_855_952  # table 3
    # The learning repository's count.
    assert round(sum(parameter.numel() for parameter in shell.parameters()) / 1e6, 2) == 20.83


def test_maps(shell):
    """Figure 5: 299-pixel images, 19x19x728 through the middle flow, 2048 channels at the end."""
    features, shapes = torch.empty(1, 3, 299, 299, device="meta"), []
    for block in shell.blocks():
        features = block(features)
        shapes.append(tuple(features.shape[1:]))
    assert shapes == [
        (64, 147, 147),
        (128, 74, 74),
        (256, 37, 37),
        (728, 19, 19),
        *[(728, 19, 19)] * 8,
        (1024, 10, 10),
        (1536, 10, 10),
        (2048, 10, 10),
    ]


def test_thirty_six_convolutions(shell):
    """Section 3: 36 convolutional layers, a separable one counted once; no residual in the first and last modules."""
    keys = [key for key, module in shell.named_modules() if isinstance(module, nn.Conv2d)]
    depthwise = [key for key in keys if key.endswith("depthwise")]
    assert len(depthwise) == 34
    assert sum(not key.endswith("depthwise") and ".shortcut." not in key for key in keys) == 36
    assert sum(isinstance(module, XceptionBlock) for module in shell.modules()) == 12


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_leaves_its_input_as_it_was(stride):
    block = XceptionBlock(6, (6, 6), stride=stride).train()
    features = torch.randn(2, 6, 9, 9)
    given = features.clone()
    block(features)
    assert torch.equal(features, given)


def test_the_shortcut_sees_the_input_before_the_activation():
    block = XceptionBlock(6, (6, 6), stride=1).eval()
    nn.init.zeros_(block.branch.separable2.bn.weight)
    features = torch.randn(2, 6, 9, 9)
    assert torch.equal(block(features), features)


def test_no_activation_between_depthwise_and_pointwise(shell):
    """Section 4.7: it is better without."""
    for module in shell.modules():
        if isinstance(module, nn.Sequential) and hasattr(module, "depthwise"):
            assert [type(layer) for layer in module][:3] == [nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]


def test_initialisation_by_fan_out():
    model = archs.build("xception", 10)
    pointwise = model.stages[1].block4.branch.separable1.pointwise
    assert pointwise.weight.std().item() == pytest.approx((2 / 728) ** 0.5, rel=0.02)
    depthwise = model.stages[1].block4.branch.separable1.depthwise
    assert depthwise.weight.std().item() == pytest.approx((2 / (9 * 728)) ** 0.5, rel=0.05)


def test_dropout_is_an_option(shell):
    assert not any(isinstance(module, nn.Dropout) for module in shell.modules())
    with torch.device("meta"):
        assert archs.build("xception", 10, dropout=0.5).head.dropout.p == 0.5
