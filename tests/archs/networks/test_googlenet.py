"""GoogLeNet against its paper, arXiv:1409.4842, and its auxiliary heads against torchvision's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import archs
from archs.networks.inception.googlenet import AuxiliaryHead, averaged


def on_meta(**options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build("googlenet", 10, **options)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_maps():
    """Table 1."""
    features = torch.empty(1, 3, 224, 224, device="meta")
    model, shapes = on_meta(), {}
    for part in (model.stem, *model.stages):
        for name, layer in part.named_children():
            features = layer(features)
            shapes[name] = tuple(features.shape[1:])
    assert shapes == {
        "conv1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "conv2": (64, 56, 56),
        "conv3": (192, 56, 56),
        "pool2": (192, 28, 28),
        "3a": (256, 28, 28),
        "3b": (480, 28, 28),
        "pool3": (480, 14, 14),
        "4a": (512, 14, 14),
        "4b": (512, 14, 14),
        "4c": (512, 14, 14),
        "4d": (528, 14, 14),
        "4e": (832, 14, 14),
        "pool4": (832, 7, 7),
        "5a": (832, 7, 7),
        "5b": (1024, 7, 7),
    }


def test_parameters_with_ten_classes():
    assert round(parameters(on_meta()) / 1e6, 2) == 9.96  # torchvision's, with the heads
    assert round(parameters(on_meta(auxiliary=False)) / 1e6, 2) == 5.61


def test_the_difference_from_the_learning_repository_s_is_the_one_told():
    """5.98 M there: 5x5 kernels in place of 3x3, one bias a channel in place of BatchNorm's two parameters."""
    model = on_meta(auxiliary=False)
    norms = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    threes = [
        block.branch5x5[1].conv.weight for stage in model.stages for block in stage if hasattr(block, "branch5x5")
    ]
    assert len(threes) == 9
    larger = sum(weight.numel() // 9 * (25 - 9) for weight in threes)
    assert round((parameters(model) - norms + larger) / 1e6, 2) == 5.98


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8, 14, 19])
def test_averaging_is_adaptive_pooling(side):
    features = torch.randn(2, 3, side, side + 2, dtype=torch.float64)
    features = features.to(memory_format=torch.channels_last).requires_grad_()
    outputs = [averaged(features, 4), F.adaptive_avg_pool2d(features, 4)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(output.square().sum(), features)[0] for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_all_three_outputs_in_training_are_torchvision_s(side, loaded):
    ours, theirs = (model.train() for model in loaded("googlenet", "torchvision:googlenet", side))
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    actual, expected = ours(images), theirs(images)
    for output, reference in zip(
        (actual.logits, *actual.auxiliary), (expected.logits, expected.aux_logits1, expected.aux_logits2), strict=True
    ):
        assert reference.norm() > 0
        assert (output - reference).norm() <= 1e-10 * reference.norm()


def test_gradients_of_an_auxiliary_head_are_torchvision_s(loaded):
    ours, theirs = (model.eval() for model in loaded("googlenet", "torchvision:googlenet", 224))
    features = torch.randn(2, 512, 14, 14, dtype=torch.float64)
    direction, gradients = torch.randn(2, 10, dtype=torch.float64), []
    for head in (ours.auxiliary[0], theirs.aux1):
        seen = features.clone().requires_grad_()
        (head(seen) * direction).sum().backward()
        gradients.append(seen.grad)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("side", [15, 32, 96, 224])
def test_output_in_training_and_in_evaluation(side):
    model, images = on_meta(), torch.empty(2, 3, side, side, device="meta")
    output = model.train()(images)
    assert isinstance(output, archs.AuxiliaryOutput)
    assert output.logits.shape == (2, 10)
    assert [logits.shape for logits in output.auxiliary] == [(2, 10), (2, 10)]
    assert output.weights == (0.3, 0.3)  # section 5
    assert model.eval()(images).shape == (2, 10)


def test_without_the_heads():
    model = on_meta(auxiliary=False).train()
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert not any("auxiliary" in key for key in model.state_dict())


def test_a_head_sees_every_pixel():
    for side in (1, 2, 3, 5, 14):
        features = torch.randn(1, 8, side, side, requires_grad=True)
        AuxiliaryHead(8, num_classes=2, dropout=0.0).eval()(features).square().sum().backward()
        assert features.grad.abs().sum(dim=1).all(), f"a pixel of a {side}x{side} map is left out"


def test_weights_without_the_heads_load_and_are_told(loaded):
    _, theirs = loaded("googlenet", "torchvision:googlenet", 32)
    weights = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("aux")}
    told = archs.load_weights(archs.build("googlenet", 10), weights, "googlenet")
    assert told.source == "torchvision:googlenet"
    assert {key.split(".")[1] for key in told.replaced} == {"0", "1"}
    assert all(key.startswith("auxiliary.") for key in told.replaced)


def test_tensorflow_scaling_is_torchvision_s_transform(loaded):
    ours, theirs = (model.eval() for model in loaded("googlenet", "torchvision:googlenet", 32, tensorflow_scaling=True))
    theirs.transform_input = True
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        # The constants are single precision: 0.5 and 0.229 are not the same in it and in double.
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_tensorflow_scaling_is_for_three_channels():
    with pytest.raises(ValueError, match="for RGB images, not for 1 channels"):
        on_meta(in_channels=1, tensorflow_scaling=True)


def test_initialisation():
    model = archs.build("googlenet", 1000)
    weights = [module.weight for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert all(weight.std().item() == pytest.approx(0.01, rel=0.06) for weight in weights)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_the_two_dropouts():
    model = on_meta()
    assert model.head.dropout.p == 0.4  # table 1
    assert [head.dropout.p for head in model.auxiliary] == [0.7, 0.7]  # section 5
