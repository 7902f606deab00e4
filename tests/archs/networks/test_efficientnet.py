"""The EfficientNets: the papers' tables, torchvision's settings, dropped branches, initialisation."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

import archs
from archs.cost import multiply_adds
from archs.layers import DropPath, InvertedResidual, SqueezeExcite
from archs.networks.mobile.efficientnetv2 import FusedMBConv

NAMES = [name for name in archs.names() if name.startswith("efficientnet")]


def on_meta(name: str, **options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build(name, 10, **options)


def torchvision_s(name: str) -> str:
    return archs.lookup(name).sources[0].removeprefix("torchvision:")


@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    # arXiv:1905.11946, table 2, and arXiv:2104.00298, table 7: parameters and multiply-adds ("FLOPs" there).
    [
        ("efficientnet_b0", 5.3, 0.39),
        ("efficientnet_b1", 7.8, 0.70),
        ("efficientnet_b2", 9.2, 1.0),
        ("efficientnet_b3", 12, 1.8),
        ("efficientnet_b4", 19, 4.2),
        ("efficientnet_b5", 30, 9.9),
        ("efficientnet_b6", 43, 19),
        ("efficientnet_b7", 66, 37),
        ("efficientnetv2_s", 22, 8.8),
        ("efficientnetv2_m", 54, 24),
        ("efficientnetv2_l", 120, 53),
    ],
)
def test_counts_of_the_papers(name, millions, billions):
    info = archs.lookup(name)
    assert info.parameters / 1e6 == pytest.approx(millions, rel=0.025)
    assert info.multiply_adds / 1e9 == pytest.approx(billions, rel=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_counts_that_torchvision_publishes(name):
    """The declared ones, which test_counts.py holds the network to; B2's weights are for 288 pixels."""
    info = archs.lookup(name)
    weights = torchvision.models.get_model_weights(torchvision_s(name)).DEFAULT
    counted, side = info.multiply_adds, weights.transforms.keywords["crop_size"]
    if name == "efficientnet_b2":
        with torch.device("meta"):
            counted = multiply_adds(archs.build(name, 1000), side, side)
    else:
        assert side == info.image_size
    assert info.parameters == weights.meta["num_params"]
    assert counted / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.0006)


def test_ten_classes():
    """B0: the learning repository's count too. V2-S: torchvision's and timm's; the learning repository has 20.33 M."""
    counts = [sum(p.numel() for p in on_meta(name).parameters()) for name in ("efficientnet_b0", "efficientnetv2_s")]
    assert [round(count / 1e6, 2) for count in counts] == [4.02, 20.19]


@pytest.mark.parametrize(
    ("name", "shapes"),
    # (channels, side, blocks) after the stem, each stage and the last 1x1: arXiv:1905.11946, table 1, and
    # arXiv:2104.00298, table 4, at 224 pixels.
    [
        (
            "efficientnet_b0",
            [
                (32, 112, 1),
                (16, 112, 1),
                (24, 56, 2),
                (40, 28, 2),
                (80, 14, 3),
                (112, 14, 3),
                (192, 7, 4),
                (320, 7, 1),
                (1280, 7, 1),
            ],
        ),
        (
            "efficientnetv2_s",
            [
                (24, 112, 1),
                (24, 112, 2),
                (48, 56, 4),
                (64, 28, 4),
                (128, 14, 6),
                (160, 14, 9),
                (256, 7, 15),
                (1280, 7, 1),
            ],
        ),
    ],
)
def test_shapes(name, shapes):
    model = on_meta(name).eval()
    features = model.stem(torch.empty(1, 3, 224, 224, device="meta"))
    seen = [(*features.shape[1:3], 1)]
    for stage in model.stages:
        features = stage(features)
        seen.append((*features.shape[1:3], len(stage)))
    assert seen == shapes


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b5", "efficientnetv2_s"])
def test_settings_that_no_weight_shows_are_torchvision_s(name):
    """BatchNorm's eps and momentum, dropout, and the rate at which each block's branch is dropped."""
    ours = on_meta(name)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(torchvision_s(name), num_classes=10)

    def norms(model):
        return {(module.eps, module.momentum) for module in model.modules() if isinstance(module, nn.BatchNorm2d)}

    assert norms(ours) == norms(theirs)
    assert ours.head.dropout.p == theirs.classifier[0].p
    blocks = [block for block in ours.blocks() if hasattr(block, "summed")]
    rates = [module.p for module in theirs.modules() if isinstance(module, StochasticDepth)]
    assert len(blocks) == len(rates)
    for block, rate in zip(blocks, rates, strict=True):
        if block.summed:
            assert getattr(block.drop_path, "rate", 0.0) == pytest.approx(rate)
    assert any(isinstance(block.drop_path, DropPath) for block in blocks)


def test_squeeze_is_a_quarter_of_the_block_s_input():
    """Not of its expanded channels: arXiv:1905.11946 follows MnasNet's ratio of 0.25."""
    for block in on_meta("efficientnet_b0").blocks():
        if isinstance(block, InvertedResidual):
            branch = block.branch
            first = branch.expand if hasattr(branch, "expand") else branch.depthwise
            assert branch.se.fc1.out_channels == first.conv.in_channels // 4


def test_timm_s_largest_and_second_version_have_another_eps():
    """Why they are no references: no conversion makes up for it."""
    timm = pytest.importorskip("timm")
    for name in ("efficientnet_b5", "efficientnetv2_s"):
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=10)
        assert {module.eps for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
        assert {module.eps for module in on_meta(name).modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}
        assert f"timm:{name}" not in archs.lookup(name).sources


def test_rates_can_be_given():
    model = on_meta("efficientnet_b0", dropout=0, drop_path=0)
    assert not any(isinstance(module, (nn.Dropout, DropPath)) for module in model.modules())
    last = on_meta("efficientnet_b0", drop_path=0.8).stages[5][3]
    assert last.drop_path.rate == pytest.approx(0.8 * 14 / 16)


@pytest.mark.parametrize("option", [{"dropout": 1.5}, {"drop_path": -0.1}, {"drop_path": 1.5}])
def test_rates_that_are_none_are_refused(option):
    with pytest.raises(ValueError, match=r"between 0 and 1|in \[0, 1\)"):
        on_meta("efficientnet_b0", **option)


@pytest.mark.parametrize("make", ["separable", "fused"])
def test_a_dropped_branch_leaves_the_image_and_the_others_are_scaled(make):
    if make == "fused":
        block = FusedMBConv(4, 2, 4, 3, 1, eps=1e-3, momentum=0.1, drop_path=0.5)
    else:
        block = InvertedResidual(4, 8, 4, drop_path=0.5)
    block.double()
    features = torch.randn(64, 4, 3, 3, dtype=torch.float64)
    branch = block.branch(features)
    output = block.train()(features)
    dropped = (output == features).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    torch.testing.assert_close(output[~dropped], features[~dropped] + 2 * branch[~dropped])


def test_initialisation():
    model = archs.build("efficientnet_b0", 10)
    assert model.stages[7][0].conv.weight.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.02)
    weight = model.head.fc.weight
    assert 0.98 * 1000**-0.5 < weight.abs().max() <= 1000**-0.5
    assert weight.std().item() == pytest.approx((1000 * 3) ** -0.5, rel=0.05), "not as for 1,000 classes"
    assert not model.head.fc.bias.any()
    squeezes = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
    assert len(squeezes) == 16
    assert not any(layer.bias.any() for squeeze in squeezes for layer in (squeeze.fc1, squeeze.fc2))
