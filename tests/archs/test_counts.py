"""Parameters, multiply-adds and convolution outputs against what references and measurements publish."""

import pytest
import torch
import torchvision
from torch import nn

import archs
from archs.cost import convolution_outputs, multiply_adds
from archs.fused import Fusable

GIB = 2**30


def on_meta(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return archs.build(name, num_classes)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_declared_counts_are_the_network_s(every_name):
    info = archs.lookup(every_name)
    model = on_meta(every_name, 1000)
    assert parameters(model) == info.parameters
    assert multiply_adds(model, info.image_size, info.image_size) == info.multiply_adds


@pytest.mark.parametrize("fused", ["auto", "on"])
def test_counts_do_not_depend_on_the_way_through_kernels(fused):
    model = on_meta("efficientnet_b0", 10)
    plain = multiply_adds(model, 64, 64)
    for module in model.modules():
        if isinstance(module, Fusable):
            module.fused = fused
    assert multiply_adds(model, 64, 64) == plain


@pytest.mark.parametrize("name", ["resnet18", "resnext50", "inceptionv3"])
def test_counts_are_torchvision_s(name):
    info = archs.lookup(name)
    published = torchvision.models.get_model_weights(info.sources[0].removeprefix("torchvision:")).DEFAULT.meta
    assert info.parameters == published["num_params"]
    assert info.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.0006)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # With 10 classes, as the learning repository trains; darknet53 there has timm's count.
        ("inceptionv3_fullres", 22.13),
        ("resnext29_2x64d", 9.13),
        ("darknet53", 40.60),
        # Published for 1,000 classes less the 990 that are not there.
        ("resnext50", 25.03 - 0.990 * 2.049),
    ],
)
def test_parameters_with_ten_classes(name, millions):
    assert parameters(on_meta(name, 10)) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("inceptionv3_fullres", 209), ("resnext29_2x64d", 69), ("darknet53", 7.1), ("resnext50", 4.2)],
)
def test_multiply_adds_at_224(name, billions):
    assert multiply_adds(on_meta(name, 10), 224, 224) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gib"),
    # Measured on the learning repository's, torchvision's and timm's own code at batch 128, 224 pixels, fp32.
    [
        ("inceptionv3_fullres", 104.3),
        ("resnext29_2x64d", 83.5),
        ("darknet53", 4.52),
        ("inceptionv3", 2.22),
        ("resnext50", 6.87),
    ],
)
def test_bytes_of_convolution_outputs(name, gib):
    assert 128 * 4 * convolution_outputs(on_meta(name, 10), 224, 224) / GIB == pytest.approx(gib, rel=0.002)


def test_the_widest_layer_of_full_resolution_inception():
    """288 channels at 222x222 into 384 at 110x110, the layer that bounds its memory from below."""
    shapes = []
    model = on_meta("inceptionv3_fullres", 10).eval()
    model.stages[1][0].branch3x3.conv.register_forward_hook(
        lambda _, ins, out: shapes.append((ins[0].shape, out.shape))
    )
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert shapes == [((1, 288, 222, 222), (1, 384, 110, 110))]


def test_multiply_adds_of_layers_counted_by_hand():
    # 16 filters of 3 (of 6, in 2 groups) x 3 x 3 at 4x4 places, then 16 -> 5 once.
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.conv = nn.Conv2d(6, 16, 3, stride=2, padding=1, groups=2)
            self.fc = nn.Linear(16, 5)

        def forward(self, images):
            return self.fc(self.conv(self.stem(images)).mean((2, 3)))

    small = Small()
    assert multiply_adds(small, 8, 8) == 8 * 8 * 6 * 3 + 4 * 4 * 16 * 27 + 16 * 5
    assert convolution_outputs(small, 8, 8) == 8 * 8 * 6 + 4 * 4 * 16


def test_counting_leaves_the_model_as_it_was():
    model = archs.build("resnet18", 10).train()
    model.stages[0].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    multiply_adds(model, 32, 32)
    assert model.training
    assert not model.stages[0][0].training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
