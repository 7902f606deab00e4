"""ShuffleNet, which no library has, against its paper's tables and against counts by hand; V2's tables."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import archs
from archs.cost import multiply_adds
from archs.layers import ChannelShuffle
from archs.networks.mobile.shufflenet import ShuffleUnit

GROUPS = (1, 2, 3, 4, 8)

# arXiv:1707.01083, table 1.
STAGE2_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
MILLIONS = {1: 143, 2: 140, 3: 137, 4: 133, 8: 137}


def on_meta(name: str, num_classes: int = 1000, **options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build(name, num_classes, **options)


def convolutions_alone(model: archs.Classifier) -> float:
    """Million multiply-adds at 224 pixels without the linear layer: what the paper's table counts."""
    return (multiply_adds(model, 224, 224) - model.head.fc.weight.numel()) / 1e6


@pytest.mark.parametrize("groups", GROUPS)
def test_multiply_adds_are_the_paper_s(groups):
    assert round(convolutions_alone(on_meta(f"shufflenet_g{groups}"))) == MILLIONS[groups]


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_multiply_adds_at_half_width(groups):
    """arXiv:1707.01083, table 2, gives one figure for all groups: 38 million."""
    assert convolutions_alone(on_meta(f"shufflenet_g{groups}", width=0.5)) == pytest.approx(38, abs=2)


@pytest.mark.parametrize("groups", GROUPS)
def test_shapes_are_the_paper_s(groups):
    """Every row of table 1: output size and channels of each layer, and how often a unit is repeated."""
    model = on_meta(f"shufflenet_g{groups}").eval()
    channels = STAGE2_CHANNELS[groups]
    features = model.stem.conv(torch.empty(1, 3, 224, 224, device="meta"))
    assert features.shape == (1, 24, 112, 112)
    features = model.stem.pool(features)
    assert features.shape == (1, 24, 56, 56)
    units = [(stage, unit) for stage, repeat in enumerate((4, 8, 4)) for unit in range(repeat)]
    assert [len(stage) for stage in model.stages] == [4, 8, 4]
    for stage, unit in units:
        features = model.stages[stage][unit](features)
        assert features.shape == (1, channels << stage, 28 >> stage, 28 >> stage), f"stage {stage + 2}, unit {unit}"


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_and_bottlenecks(groups):
    """Section 3.2: a quarter of the unit's channels between; no groups in the first 1x1 of stage 2 alone."""
    model = on_meta(f"shufflenet_g{groups}")
    for stage, channels in zip(model.stages, (STAGE2_CHANNELS[groups] << stage for stage in range(3)), strict=True):
        for index, unit in enumerate(stage):
            narrow, depthwise, widen = unit.branch.narrow.conv, unit.branch.depthwise.conv, unit.branch.widen.conv
            first = stage is model.stages[0] and index == 0
            assert narrow.groups == (1 if first else groups)
            assert widen.groups == groups
            assert depthwise.groups == depthwise.in_channels == narrow.out_channels == channels // 4
            assert depthwise.stride == ((2, 2) if index == 0 else (1, 1))
            assert sum(isinstance(layer, nn.ReLU) for layer in unit.branch.modules()) == 1, "a ReLU after the depthwise"


def parameters_by_hand(groups: int, *, stem_kernel: int = 3, quarter_of_the_branch: bool = False) -> int:
    """With 10 classes: a sum over the paper's table, not over our modules."""
    width, total = 24, 24 * 3 * stem_kernel**2 + 2 * 24
    for stage, units in enumerate((4, 8, 4)):
        channels = STAGE2_CHANNELS[groups] << stage
        for unit in range(units):
            out = channels - width if unit == 0 else channels
            hidden = (out if quarter_of_the_branch else channels) // 4
            narrow = width * hidden // (1 if width == 24 else groups)
            total += narrow + 9 * hidden + hidden * out // groups + 2 * (2 * hidden + out)
            width = channels
    return total + 10 * width + 10


@pytest.mark.parametrize("groups", GROUPS)
def test_parameters_are_those_counted_by_hand(groups):
    model = on_meta(f"shufflenet_g{groups}", 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters_by_hand(groups)


def test_what_the_learning_repository_counts_otherwise():
    assert round(parameters_by_hand(2) / 1e6, 2) == 0.94
    assert round(parameters_by_hand(2, stem_kernel=1, quarter_of_the_branch=True) / 1e6, 2) == 0.89


def test_a_unit_is_its_definition():
    """Figure 2b and 2c written out, the ReLU before the shuffle."""
    for stride, out_channels in ((1, 12), (2, 24)):
        unit = ShuffleUnit(12, out_channels, stride, groups=3).double().eval()
        features = torch.randn(2, 12, 6, 6, dtype=torch.float64)
        narrow, depthwise, widen = unit.branch.narrow, unit.branch.depthwise, unit.branch.widen
        branch = F.channel_shuffle(narrow.bn(narrow.conv(features)).relu(), 3)
        branch = widen.bn(widen.conv(depthwise.bn(depthwise.conv(branch))))
        if stride == 1:
            expected = (features + branch).relu()
        else:
            expected = torch.cat([F.avg_pool2d(features, 3, 2, 1), branch], dim=1).relu()
        torch.testing.assert_close(unit(features), expected)


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_the_shuffle_is_torch_s_and_keeps_channels_last(groups):
    features = torch.randn(2, 24, 3, 5).to(memory_format=torch.channels_last)
    expected = F.channel_shuffle(features, groups)
    whole = ChannelShuffle(groups)(features)
    parts = ChannelShuffle(groups)(*features.chunk(groups, dim=1))
    for shuffled in (whole, parts):
        assert torch.equal(shuffled, expected)
        assert shuffled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shuffled", [True, False])
def test_one_output_sees_every_group_because_of_the_shuffle(shuffled):
    """Figure 1: without it an output depends on its own group alone."""
    unit = ShuffleUnit(64, 64, 1, groups=4).double().eval()
    if not shuffled:
        unit.branch.shuffle = nn.Identity()
    features = torch.randn(1, 64, 5, 5, dtype=torch.float64, requires_grad=True)
    unit.branch(features)[:, 0].sum().backward()
    seen = features.grad.abs().sum((0, 2, 3)).view(4, 16).sum(1) > 0
    assert seen.tolist() == ([True] * 4 if shuffled else [True, False, False, False])


@pytest.mark.parametrize(
    ("name", "width", "told"),
    [
        ("shufflenet_g3", 0.51, r"122 channels in stage 2; .* by 3 groups: width 0.5 \(120\) or 0.55 \(132\) would do"),
        ("shufflenet_g4", 0.5, r"136 channels .* by 4 groups: width 0.4706 \(128\) or 0.5294 \(144\) would do"),
        ("shufflenet_g8", 0.01, r"4 channels .* by 8 groups: width 0.08333 \(32\) would do"),
        ("shufflenet_g1", 0, "above 0, not 0"),
    ],
)
def test_a_width_that_the_groups_do_not_divide_is_refused(name, width, told):
    with pytest.raises(ValueError, match=told):
        on_meta(name, width=width)


@pytest.mark.parametrize(("name", "width"), [("shufflenet_g4", 0.4706), ("shufflenet_g8", 0.08333)])
def test_a_width_that_would_do_does(name, width):
    assert on_meta(name, 10, width=width).eval()(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)


def test_initialisation():
    model = archs.build("shufflenet_g3", 10)
    unit = model.stages[2][1].branch
    assert unit.narrow.conv.weight.std().item() == pytest.approx((2 / 240) ** 0.5, rel=0.02)
    assert unit.widen.conv.weight.std().item() == pytest.approx((2 / 960) ** 0.5, rel=0.02)
    assert not model.head.fc.bias.any()


def test_version_2_is_its_paper_s_table():
    """arXiv:1807.11164, table 5 at 1x: shapes, 2.3 million parameters, 146 million multiply-adds."""
    info = archs.lookup("shufflenetv2_x1_0")
    assert round(info.parameters / 1e6, 1) == 2.3
    assert info.multiply_adds / 1e6 == pytest.approx(146, rel=0.01)
    model = on_meta("shufflenetv2_x1_0").eval()
    features = model.stem(torch.empty(1, 3, 224, 224, device="meta"))
    seen = [tuple(features.shape[1:3])]
    for stage in model.stages:
        features = stage(features)
        seen.append(tuple(features.shape[1:3]))
    assert seen == [(24, 56), (116, 28), (232, 14), (464, 7), (1024, 7)]
    assert [len(stage) for stage in model.stages] == [4, 8, 4, 1]
