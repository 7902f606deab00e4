"""MobileNetV1 and V2: the papers' tables, the width multiplier against other code, initialisation."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

import archs
from archs.cost import multiply_adds
from archs.layers import DepthwiseSeparable


def on_meta(name: str, num_classes: int = 1000, **options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build(name, num_classes, **options)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def stage_shapes(model: archs.Classifier, side: int) -> list[tuple[int, ...]]:
    """(channels, height, width) after the stem and after each stage."""
    features = model.eval().stem(torch.empty(1, 3, side, side, device="meta"))
    shapes = [tuple(features.shape[1:])]
    for stage in model.stages:
        features = stage(features)
        shapes.append(tuple(features.shape[1:]))
    return shapes


def logits_with_the_weights_of(theirs: nn.Module, name: str, source: str, **options) -> tuple[Tensor, Tensor]:
    """Logits of ours and of theirs for the same images, in float64."""
    ours = archs.build(name, 10, **options).double().eval()
    theirs = theirs.double().eval()
    archs.load_reference(ours, theirs.state_dict(), name, source)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        return ours(images), theirs(images)


@pytest.mark.parametrize(
    ("name", "millions", "parameters_"),
    # arXiv:1704.04861, table 6: million multiply-adds and million parameters.
    [
        ("mobilenetv1", 569, 4.2),
        ("mobilenetv1_075", 325, 2.6),
        ("mobilenetv1_050", 149, 1.3),
        ("mobilenetv1_025", 41, 0.5),
    ],
)
def test_mobilenetv1_by_width(name, millions, parameters_):
    info = archs.lookup(name)
    assert round(info.multiply_adds / 1e6) == millions
    assert round(info.parameters / 1e6, 1) == parameters_


@pytest.mark.parametrize(("side", "millions"), [(224, 569), (192, 418), (160, 290), (128, 186)])
def test_mobilenetv1_by_resolution(side, millions):
    """arXiv:1704.04861, table 7; it prints 290.68 as 290."""
    assert multiply_adds(on_meta("mobilenetv1"), side, side) / 1e6 == pytest.approx(millions, abs=0.7)


def test_mobilenetv1_shapes():
    """arXiv:1704.04861, table 1."""
    model = on_meta("mobilenetv1")
    assert stage_shapes(model, 224) == [
        (32, 112, 112),
        (64, 112, 112),
        (128, 56, 56),
        (256, 28, 28),
        (512, 14, 14),
        (1024, 7, 7),
    ]
    assert [len(stage) for stage in model.stages] == [1, 2, 2, 6, 2]


def test_mobilenetv2_shapes():
    """arXiv:1801.04381, table 2: channels, blocks and sides, the last 1x1 included."""
    model = on_meta("mobilenetv2")
    assert stage_shapes(model, 224) == [
        (32, 112, 112),
        (16, 112, 112),
        (24, 56, 56),
        (32, 28, 28),
        (64, 14, 14),
        (96, 14, 14),
        (160, 7, 7),
        (320, 7, 7),
        (1280, 7, 7),
    ]
    assert [len(stage) for stage in model.stages] == [1, 2, 3, 4, 3, 3, 1, 1]


def test_mobilenetv2_counts():
    """arXiv:1801.04381, table 4: 300 million multiply-adds; torchvision's own count of parameters."""
    info = archs.lookup("mobilenetv2")
    published = torchvision.models.get_model_weights("mobilenet_v2").DEFAULT.meta
    assert info.multiply_adds / 1e6 == pytest.approx(300, abs=1)
    assert info.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.0006)
    assert info.parameters == published["num_params"]


@pytest.mark.parametrize(("name", "millions"), [("mobilenetv1", 3.22), ("mobilenetv2", 2.24)])
def test_parameters_with_ten_classes(name, millions):
    """The learning repository's counts."""
    assert round(parameters(on_meta(name, 10)) / 1e6, 2) == millions


@pytest.mark.parametrize("width", [0.35, 1.4])
def test_mobilenetv2_of_another_width_is_torchvision_s(width, randomise):
    theirs = randomise(torchvision.models.mobilenet_v2(num_classes=10, width_mult=width))
    actual, expected = logits_with_the_weights_of(theirs, "mobilenetv2", "torchvision:mobilenet_v2", width=width)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_mobilenetv1_of_another_width_is_timm_s(randomise):
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model("mobilenetv1_125", num_classes=10))
    actual, expected = logits_with_the_weights_of(theirs, "mobilenetv1", "timm:mobilenetv1_100", width=1.25)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenetv1_075", 0.75), ("mobilenetv1_050", 0.5), ("mobilenetv1_025", 0.25)]
)
def test_a_width_with_a_name_is_that_width(name, width):
    named, made = (model.state_dict() for model in (on_meta(name), on_meta("mobilenetv1", width=width)))
    assert {key: tensor.shape for key, tensor in named.items()} == {key: tensor.shape for key, tensor in made.items()}


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2"])
@pytest.mark.parametrize("width", [0, -0.5])
def test_a_width_of_nothing_is_refused(name, width):
    with pytest.raises(ValueError, match=f"a width multiplier is above 0, not {width}"):
        on_meta(name, width=width)


def test_mobilenetv1_initialisation():
    model = archs.build("mobilenetv1", 10)
    deep = model.stages[4][0]
    assert isinstance(deep, DepthwiseSeparable)
    assert deep.depthwise.conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert deep.pointwise.conv.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    weight = model.head.fc.weight
    assert 0.98 * 1000**-0.5 < weight.abs().max() <= 1000**-0.5
    assert weight.std().item() == pytest.approx((1000 * 3) ** -0.5, rel=0.05), "not as for 1,000 classes"
    assert not model.head.fc.bias.any()


def test_mobilenetv2_initialisation():
    model = archs.build("mobilenetv2", 10)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.head.fc.bias.any()
    assert model.stages[7][0].conv.weight.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.02)


def test_mobilenetv2_dropout():
    assert on_meta("mobilenetv2", 10).head.dropout.p == 0.2
    assert not any(isinstance(module, nn.Dropout) for module in on_meta("mobilenetv2", 10, dropout=0).modules())
