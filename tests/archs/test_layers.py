"""The shared layers against their parts written out."""

import pytest
import torch
from torch import nn

from archs.layers import Branches, ConvNormAct, LinearHead, initialise_fan_out


def test_conv_norm_act_is_its_three_ops():
    layer = ConvNormAct(4, 6, 3, stride=2, groups=2, eps=1e-3).double().eval()
    for tensor in (layer.bn.running_mean, layer.bn.bias):
        nn.init.normal_(tensor)
    images = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    convolved = nn.functional.conv2d(images, layer.conv.weight, stride=2, padding=1, groups=2)
    column = (1, -1, 1, 1)
    normalised = (convolved - layer.bn.running_mean.view(column)) / (layer.bn.running_var.view(column) + 1e-3).sqrt()
    expected = (normalised * layer.bn.weight.view(column) + layer.bn.bias.view(column)).clamp(min=0)
    torch.testing.assert_close(layer(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "padding", "shape"),
    [(3, None, (8, 8)), ((1, 7), None, (8, 8)), ((7, 1), None, (8, 8)), (3, 0, (6, 6)), (4, 1, (7, 7))],
)
def test_padding(kernel, padding, shape):
    with torch.device("meta"):
        assert ConvNormAct(3, 2, kernel, padding=padding)(torch.empty(1, 3, 8, 8)).shape[-2:] == shape


def test_an_even_kernel_needs_its_padding():
    with pytest.raises(ValueError, match="a 4x4 kernel cannot keep the map's size"):
        ConvNormAct(3, 2, 4)


def test_without_activation_negative_values_pass():
    layer = ConvNormAct(3, 8, act=None)
    assert (layer(torch.randn(2, 3, 4, 4)) < 0).any()


def test_standard_parameter_names():
    assert set(dict(ConvNormAct(3, 2).named_parameters())) == {"conv.weight", "bn.weight", "bn.bias"}
    assert set(dict(LinearHead(3, 2, dropout=0.5).named_parameters())) == {"fc.weight", "fc.bias"}


def test_branches_join_channels_in_the_order_given():
    branches = Branches(second=nn.Identity(), first=nn.AvgPool2d(1), third=nn.Conv2d(2, 3, 1))
    images = torch.randn(1, 2, 3, 3)
    joined = branches(images)
    assert joined.shape == (1, 7, 3, 3)
    assert torch.equal(joined[:, :2], images)


def test_linear_head_has_dropout_where_it_is_asked_for():
    assert not any(isinstance(layer, nn.Dropout) for layer in LinearHead(4, 2))
    head = LinearHead(4, 2, dropout=0.3)
    assert head.dropout.p == 0.3
    features = torch.randn(2, 4, 3, 5)
    assert torch.allclose(head.eval()(features), head.fc(features.mean((2, 3))), atol=1e-6)


def test_fan_out_draw():
    layer = nn.Conv2d(64, 128, 3, groups=4, bias=False)
    initialise_fan_out(layer)
    # torch's fan-out of a grouped convolution counts all output channels, and so do the references.
    assert layer.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
