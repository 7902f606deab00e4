"""DenseNet against the tables of its paper, arXiv:1608.06993."""

import pytest
import torch
import torchvision
from torch import nn

import archs
from archs.networks.residual.densenet import DenseLayer, cifar_densenet


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: archs.Classifier, side: int) -> list[tuple[int, ...]]:
    """[C, H, W] after the stem, after each block and after each transition."""
    features = model.stem(torch.empty(1, 3, side, side, device="meta"))
    shapes = [tuple(features.shape[1:])]
    for stage in model.stages:
        *layers, last = stage
        for layer in layers:
            features = layer(features)
        shapes.append(tuple(features.shape[1:]))
        features = last(features)
        shapes.append(tuple(features.shape[1:]))
    return shapes


@pytest.mark.parametrize(
    ("depth", "growth", "millions"),
    # The learning repository's count, then table 2, "DenseNet-BC".
    [(40, 12, 0.18), (100, 12, 0.8), (250, 24, 15.3), (190, 40, 25.6)],
)
def test_parameters_of_the_cifar_networks(depth, growth, millions):
    with torch.device("meta"):
        model = cifar_densenet(depth, growth, 10)
    digits = len(str(millions).partition(".")[2])
    assert round(parameters(model) / 1e6, digits) == millions


def test_densenet40_is_that_of_depth_40():
    with torch.device("meta"):
        model = archs.build("densenet40", 10)
    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(convolutions) == 40
    # Section 3: 2k channels, then six layers of k a block and half of the channels after it.
    assert outputs(model, 32) == [
        (24, 32, 32),
        (96, 32, 32),
        (48, 16, 16),
        (120, 16, 16),
        (60, 8, 8),
        (132, 8, 8),
        (132, 8, 8),
    ]


def test_multiply_adds_of_densenet40_counted_by_hand():
    total, channels = 32 * 32 * 27 * 24, 24
    for side in (32, 16, 8):
        for _ in range(6):
            total += side**2 * (channels * 48 + 48 * 9 * 12)
            channels += 12
        if side > 8:
            total += side**2 * channels * (channels // 2)
            channels //= 2
    assert archs.lookup("densenet40").multiply_adds == total + channels * 1000


@pytest.mark.parametrize(
    ("name", "channels"),
    # Table 1's depths, k = 32.
    [
        ("densenet121", [256, 128, 512, 256, 1024, 512, 1024, 1024]),
        ("densenet169", [256, 128, 512, 256, 1280, 640, 1664, 1664]),
        ("densenet201", [256, 128, 512, 256, 1792, 896, 1920, 1920]),
    ],
)
def test_maps_and_counts_of_the_imagenet_networks(name, channels):
    info = archs.lookup(name)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert info.parameters == published["num_params"]
    assert info.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.0006)
    with torch.device("meta"):
        model = archs.build(name, 10)
    convolutions = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(convolutions) == int(name.removeprefix("densenet"))
    sides = [56, 28, 28, 14, 14, 7, 7, 7]
    assert outputs(model, 224) == [(64, 56, 56), *((c, side, side) for c, side in zip(channels, sides, strict=True))]


def test_a_layer_leaves_what_came_before_it():
    layer = DenseLayer(10, growth=4, dropout=0.0)
    features = torch.randn(2, 10, 6, 6)
    given = features.clone()
    out = layer(features)
    assert out.shape == (2, 14, 6, 6)
    assert torch.equal(out[:, :10], given)
    assert torch.equal(features, given), "an activation in place has overwritten the input"


def test_dropout_falls_on_the_new_maps_alone():
    layer = DenseLayer(10, growth=4, dropout=0.5).train()
    features = torch.rand(2, 10, 16, 16) + 1
    out = layer(features)
    assert out[:, :10].all()
    assert (out[:, 10:] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_initialisation():
    model = archs.build("densenet40", 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06)
    assert not model.head.fc.bias.any()


@pytest.mark.parametrize("depth", [4, 41, 3])
def test_a_depth_that_three_blocks_cannot_have(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 4, such as 40 or 100, not {depth}"):
        cifar_densenet(depth, 12, 10)
