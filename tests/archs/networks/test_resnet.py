"""ResNet, ResNeXt and SENet against the tables of their papers."""

import pytest
import torch
import torchvision
from torch import nn

import archs
from archs.networks.residual.resnet import BasicBlock, Bottleneck
from archs.networks.residual.resnext import ResNeXt29
from archs.networks.residual.senet import SEBasicBlock, SEBottleneck


def on_meta(name: str, num_classes: int = 1000, **options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build(name, num_classes, **options)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: archs.Classifier, side: int) -> list[tuple[int, ...]]:
    """[C, H, W] after the stem and after each stage."""
    features, shapes = torch.empty(1, 3, side, side, device="meta"), []
    for part in (model.stem, *model.stages):
        features = part(features)
        shapes.append(tuple(features.shape[1:]))
    return shapes


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50", "resnext101_32x8d"]
)
def test_counts_are_those_torchvision_publishes(name):
    info = archs.lookup(name)
    published = torchvision.models.get_model_weights(info.sources[0].removeprefix("torchvision:")).DEFAULT.meta
    assert info.parameters == published["num_params"]
    assert info.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.0006)


@pytest.mark.parametrize(
    ("name", "millions"),
    # The learning repository's count, timm's, and the paper's (arXiv:1611.05431, table 7).
    [("resnet18", 11.18), ("se_resnet18", 11.27), ("resnext29_8x64d", 34.4), ("resnext29_2x64d", 9.13)],
)
def test_parameters_with_ten_classes(name, millions):
    digits = len(str(millions).partition(".")[2])
    assert round(parameters(on_meta(name, 10)) / 1e6, digits) == millions


@pytest.mark.parametrize("name", ["resnet50", "resnext50", "se_resnet50"])
def test_maps_of_the_bottleneck_networks(name):
    """arXiv:1512.03385, table 1; arXiv:1611.05431, table 1; arXiv:1709.01507, table 1."""
    expected = [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert outputs(on_meta(name), 224) == expected


@pytest.mark.parametrize("name", ["resnet34", "se_resnet18"])
def test_maps_of_the_basic_networks(name):
    """arXiv:1512.03385, table 1."""
    assert outputs(on_meta(name), 224) == [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101), ("resnet152", 152)]
)
def test_the_number_in_the_name_counts_the_layers(name, layers):
    layer = [key for key, module in on_meta(name).named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum(".shortcut." not in key for key in layer) == layers


def test_maps_of_resnext29():
    """arXiv:1611.05431, section 5.2: three stages at 32, 16 and 8 pixels, widths doubled at each."""
    model = on_meta("resnext29_8x64d", 10)
    assert outputs(model, 32) == [(64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8)]
    assert [stage[0].conv2.conv.weight.shape for stage in model.stages] == [
        (512, 64, 3, 3),
        (1024, 128, 3, 3),
        (2048, 256, 3, 3),
    ]
    assert model.stem.conv.kernel_size == (3, 3)
    assert on_meta("resnext29_2x64d", 10).stem.conv.kernel_size == (1, 1)


def test_the_paper_s_other_resnext29():
    """arXiv:1611.05431, table 7: 16x64d has 68.1 M; counted, 68.155 M."""
    with torch.device("meta"):
        assert parameters(ResNeXt29(10, groups=16)) / 1e6 == pytest.approx(68.1, abs=0.06)


def test_resnext29_draws_by_fan_out_and_the_learning_repository_s_by_torch_s_default():
    weight = archs.build("resnext29_8x64d", 10).stages[0][0].conv1.conv.weight
    assert weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    weight = archs.build("resnext29_2x64d", 10).stages[0][0].conv1.conv.weight
    assert weight.abs().max().item() <= 64**-0.5


def test_what_a_gate_costs():
    """arXiv:1709.01507, equation 5: 2 / r · sum of N C² for N blocks of C channels, without the biases; r = 16."""
    rows = [(3, 256), (4, 512), (6, 1024), (3, 2048)]
    weights = sum(blocks * 2 * channels**2 // 16 for blocks, channels in rows)
    biases = sum(blocks * (channels + channels // 16) for blocks, channels in rows)
    for plain, gated in (("resnet50", "se_resnet50"), ("resnext50", "se_resnext50")):
        assert archs.lookup(gated).parameters - archs.lookup(plain).parameters == weights + biases


def test_squeezed_channels():
    model = on_meta("se_resnet18")
    assert [stage[0].se.fc1.out_channels for stage in model.stages] == [8, 8, 16, 32]


@pytest.mark.parametrize("block", [SEBasicBlock, SEBottleneck])
def test_the_gate_is_before_the_sum(block):
    """Shut, it leaves the shortcut; open, it leaves the block without it."""
    layer = block(8 * block.expansion, 8, 8 * block.expansion).eval()
    features = torch.randn(2, 8 * block.expansion, 5, 5)
    nn.init.zeros_(layer.se.fc2.weight)
    with torch.no_grad():
        nn.init.constant_(layer.se.fc2.bias, -200.0)
        assert torch.equal(layer(features), features.relu())
        nn.init.constant_(layer.se.fc2.bias, 200.0)
        plain = BasicBlock if block is SEBasicBlock else Bottleneck
        assert torch.equal(layer(features), layer.act(plain.branch(layer, features) + features))


def test_zero_initialised_residuals_of_gated_blocks():
    for name, last in (("se_resnet18", "conv2"), ("se_resnet50", "conv3")):
        stage = archs.build(name, 10, zero_init_residual=True).stages[0]
        assert not any(getattr(block, last).bn.weight.any() for block in stage)


def test_a_basic_block_has_no_groups():
    with pytest.raises(ValueError, match="no groups: use the bottleneck"):
        BasicBlock(64, 64, 64, groups=2)
