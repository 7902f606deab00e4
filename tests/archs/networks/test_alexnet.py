"""AlexNet against its paper: the sizes of its figure 2, its normalisation, its initialisation."""

import copy

import pytest
import torch
from torch import nn

import archs
from archs.cost import multiply_adds
from archs.networks.sequential.alexnet import AlexNet, LocalResponseNorm
from engine.step.recompute import recompute_blocks


def on_meta(name: str, num_classes: int, **options) -> nn.Module:
    with torch.device("meta"):
        return archs.build(name, num_classes, **options)


def shapes_after(model: nn.Module, kind: type[nn.Module], side: int = 224) -> list[tuple[int, ...]]:
    """Output shapes of every layer of one kind, in the order in which they run, for one image."""
    shapes = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return shapes


def test_maps_are_those_of_figure_2():
    """Both towers of figure 2 together: 55, 27 and 13 pixels with 96, 256, 384, 384 and 256 kernels, then 4096s."""
    model = on_meta("alexnet", 1000)
    expected = [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert shapes_after(model, nn.Conv2d) == expected
    # The figure's caption counts neurons; its first number, 253,440, is not 55·55·96, as is well known.
    assert [width * height * channels for channels, height, width in expected[1:]] == [186_624, 64_896, 64_896, 43_264]
    assert shapes_after(model, nn.MaxPool2d) == [(96, 27, 27), (256, 13, 13), (256, 6, 6)]
    assert shapes_after(model, nn.Linear) == [(4096,), (4096,), (1000,)]


def test_parameters_without_groups():
    """Caffe's and the paper's count with two groups is 60.97 M; undoing the groups doubles three convolutions."""
    model = on_meta("alexnet", 1000)
    second, third = model.stages
    grouped = sum(layer.conv.weight.numel() // 2 for layer in (second.conv1, third.conv2, third.conv3))
    count = sum(parameter.numel() for parameter in model.parameters())
    # 60,965,224 is what Caffe's bvlc_alexnet has.
    assert count - grouped == 60_965_224


@pytest.mark.parametrize(("name", "millions"), [("alexnet", 58.32), ("alexnet_owt", 57.04)])
def test_parameters_with_ten_classes(name, millions):
    """alexnet: what the learning repository counts; alexnet_owt: torchvision's 61.10 M less 990 classes of 4,097."""
    count = sum(parameter.numel() for parameter in on_meta(name, 10).parameters())
    assert round(count / 1e6, 2) == millions


def test_multiply_adds_layer_by_layer():
    """Map x kernel x channels, from figure 2's numbers."""
    convolutions = 55**2 * 96 * 363 + 27**2 * 256 * 2400 + 13**2 * (384 * 2304 + 384 * 3456 + 256 * 3456)
    linear = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert multiply_adds(on_meta("alexnet", 1000), 224, 224) == convolutions + linear


def test_response_norm_is_the_paper_s_equation():
    """Section 3.3 term by term; torch's layer is the same at n times its α."""
    features = 4 * torch.randn(2, 7, 3, 2).double()
    expected = torch.empty_like(features)
    for channel in range(7):
        window = features[:, max(0, channel - 2) : min(6, channel + 2) + 1]
        expected[:, channel] = features[:, channel] / (2 + 1e-4 * window.square().sum(1)) ** 0.75
    torch.testing.assert_close(LocalResponseNorm()(features), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)(features), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_response_norm_s_gradient(channels):
    # Large values, so that the term across channels counts.
    features = (40 * torch.randn(2, channels, 2, 2).double()).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(), features)
    assert torch.autograd.gradgradcheck(LocalResponseNorm(), features)


def test_response_norm_keeps_its_input_alone():
    features, kept = torch.randn(2, 8, 4, 4, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        LocalResponseNorm()(features)
    assert [tensor.data_ptr() for tensor in kept] == [features.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_response_norm_in_half_precision(dtype):
    """Squares above 65,504 do not overflow: the sum is in single precision; layout and dtype stay."""
    features = (300 * torch.rand(2, 8, 4, 4)).to(dtype).to(memory_format=torch.channels_last)
    output = LocalResponseNorm()(features.requires_grad_())
    assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
    expected = LocalResponseNorm()(features.float())
    torch.testing.assert_close(output.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
    output.float().sum().backward()
    assert features.grad.dtype == dtype and torch.isfinite(features.grad).all()


def test_initialisation_is_section_5_s():
    """N(0, 0.01²); biases one in the second, fourth and fifth convolution and in the hidden linear layers.

    The first weights see images divided by 57.6, the standard deviation of the pixels that the paper's see.
    """
    model = archs.build("alexnet", 10)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [layer.bias.unique().tolist() for layer in layers] == [[0], [1], [0], [1], [1], [1], [1], [0]]
    for layer in layers:
        scale = 57.6 if layer is layers[0] else 1
        assert layer.weight.std().item() == pytest.approx(0.01 * scale, rel=0.02)
        assert abs(layer.weight.mean().item()) < 1e-4 * scale


def test_dropout_is_where_each_of_the_two_has_it():
    """Section 4.2: the outputs of the first two linear layers; torchvision's drops their inputs."""

    def order(name):
        return [key.rstrip("12") for key, _ in on_meta(name, 10).head.named_children()]

    assert order("alexnet") == ["pool", "fc", "act", "dropout", "fc", "act", "dropout", "fc"]
    assert order("alexnet_owt") == ["pool", "dropout", "fc", "act", "dropout", "fc", "act", "fc"]
    assert not any(isinstance(module, nn.Dropout) for module in on_meta("alexnet", 10, dropout=0).modules())


def test_recompute_gives_the_same_gradients():
    """Through the normalisation's own backward, which reads what it kept."""
    model = AlexNet((8, 6, 4, 4, 4), 3, response_norm=True)
    model.head = nn.Flatten()
    again = copy.deepcopy(model)
    assert recompute_blocks(again) == 3
    images = torch.randn(2, 3, 63, 63)
    for network in (model, again):
        network(images).square().sum().backward()
    for theirs, ours in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
