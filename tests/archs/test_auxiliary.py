"""Inception-v3's auxiliary head: when it speaks, at which sizes, with which weight."""

import pytest
import torch

import archs
from archs.layers import ConvNormAct
from archs.networks.inception.inceptionv3 import AuxiliaryHead, auxiliary_window


def middle_side(image: int) -> int:
    """Side of the map that the auxiliary head sees, by the layers' own arithmetic."""
    for kernel, stride in [(3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (3, 2)]:
        image = (image - kernel) // stride + 1
    return image


@pytest.mark.parametrize("side", range(5, 20))
def test_the_window_leaves_five(side):
    kernel, stride = auxiliary_window(side)
    assert (side - kernel) // stride + 1 == 5
    assert 1 <= stride <= kernel, "a stride over the kernel skips pixels"


@pytest.mark.parametrize("side", [17, 18, 19, 20, 31])
def test_the_window_is_torchvision_s_where_torchvision_s_works(side):
    assert auxiliary_window(side) == (5, 3)


@pytest.mark.parametrize("image", [75, 96, 106, 107, 128, 224, 299])
def test_the_head_takes_every_image_size(image):
    with torch.device("meta"):
        head = AuxiliaryHead(ConvNormAct, num_classes=7)
        assert head(torch.empty(2, 768, middle_side(image), middle_side(image))).shape == (2, 7)


def test_map_sizes_that_the_docstring_names():
    assert [middle_side(image) for image in (75, 106, 107, 224, 298, 299)] == [3, 4, 5, 12, 16, 17]


def test_a_constant_map_gives_the_same_at_every_size():
    """Pooling and repeating are averages: what they make of a constant is that constant."""
    head = AuxiliaryHead(ConvNormAct, num_classes=7).eval()
    with torch.no_grad():
        outputs = [
            head(torch.full((1, 768, height, width), 0.5)) for height, width in ((3, 3), (4, 9), (12, 12), (17, 17))
        ]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-6)


def test_every_pixel_of_the_map_counts():
    for side in (3, 4, 5, 7, 12, 16, 17):
        features = torch.randn(1, 768, side, side, requires_grad=True)
        AuxiliaryHead(ConvNormAct, num_classes=2).eval()(features).square().sum().backward()
        assert features.grad.abs().sum(dim=1).all(), f"a pixel of a {side}x{side} map is left out"


def test_output_in_training_and_in_evaluation():
    with torch.device("meta"):
        model = archs.build("inceptionv3", 7)
        images = torch.empty(2, 3, 224, 224)
        output = model.train()(images)
        assert isinstance(output, archs.AuxiliaryOutput)
        assert output.logits.shape == (2, 7)
        assert [logits.shape for logits in output.auxiliary] == [(2, 7)]
        assert output.weights == (0.4,)
        assert model.eval()(images).shape == (2, 7)


def test_without_the_head():
    with torch.device("meta"):
        model = archs.build("inceptionv3", 7, auxiliary=False).train()
        assert model(torch.empty(2, 3, 96, 96)).shape == (2, 7)
    assert not any("auxiliary" in key for key in model.state_dict())


def test_images_too_small_are_told_the_least_size():
    with torch.device("meta"):
        model = archs.build("inceptionv3", 7)
        with pytest.raises(ValueError, match=r"at least 75x75 pixels, not \(74, 100\)"):
            model(torch.empty(1, 3, 74, 100))
