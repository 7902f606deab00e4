"""The BatchNorm that is written out against torch's, and the ConvNet around it."""

import copy

import pytest
import torch
from torch import nn

import archs
from archs.networks.sequential.convnet_bn import BatchNorm
from engine.step.recompute import recompute_blocks


def pair(channels: int = 5, **options) -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and torch's in float64, with the same random parameters and running averages."""
    theirs = nn.BatchNorm2d(channels, **options).double()
    for tensor in (theirs.weight, theirs.bias, theirs.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(theirs.running_var, 0.5, 2)
    ours = BatchNorm(channels, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"eps": 0.3, "momentum": 0.4}], ids=["defaults", "others"])
def test_batch_norm_is_torch_s(options, training):
    """Outputs, the three gradients and the running averages, over three batches; algorithms 1 and 2 of the paper."""
    layers = [layer.train(training) for layer in pair(**options)]
    for _ in range(3):
        images, direction = 2 + 3 * torch.randn(4, 5, 3, 7).double(), torch.randn(4, 5, 3, 7).double()
        results = []
        for layer in layers:
            layer.zero_grad()
            seen = images.clone().requires_grad_()
            output = layer(seen)
            (output * direction).sum().backward()
            results.append((output, seen.grad, layer.weight.grad, layer.bias.grad))
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(*(layer.state_dict() for layer in layers), rtol=1e-12, atol=1e-14)
    assert layers[0].num_batches_tracked == (3 if training else 0)


def test_batch_norm_normalises():
    """From the definition alone: mean β and variance γ² (less ε's share) of each channel of the output."""
    ours, _ = pair()
    output = ours(100 + 3 * torch.randn(16, 5, 8, 8).double())
    torch.testing.assert_close(output.mean((0, 2, 3)), ours.bias, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.var((0, 2, 3), correction=0), ours.weight.square(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_norm_in_half_precision_counts_in_single(dtype):
    ours, theirs = (layer.float() for layer in pair())
    # Squares of 300 overflow fp16.
    images = (300 * torch.randn(4, 5, 6, 6)).to(dtype)
    output = ours(images)
    assert output.dtype == dtype
    # Within one rounding of the output.
    torch.testing.assert_close(output.float(), theirs(images.float()), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_batch_norm_refuses_one_value_a_channel():
    layer = BatchNorm(5)
    with pytest.raises(ValueError, match="two values a channel"):
        layer(torch.randn(1, 5, 1, 1))
    assert layer.num_batches_tracked == 0
    layer.eval()(torch.randn(1, 5, 1, 1))


def test_recompute_counts_each_batch_once():
    """Running averages and their counter are those without recompute, and so are the gradients."""
    model = archs.build("convnet_bn", 7)
    again = copy.deepcopy(model)
    assert recompute_blocks(again) == 3
    images = torch.randn(4, 3, 16, 16)
    for network in (model, again):
        for _ in range(2):
            network(images).square().sum().backward()
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    assert again.stem.conv.bn.num_batches_tracked == 2
    for theirs, ours in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_every_batch_norm_of_the_network_is_ours():
    norms = [module for module in archs.build("convnet_bn", 7).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(type(norm) is BatchNorm for norm in norms)


def test_layer_shapes():
    with torch.device("meta"):
        model = archs.build("convnet_bn", 10)
        features, shapes = torch.empty(1, 3, 32, 32), []
        for block in model.blocks():
            features = block(features)
            shapes.append(tuple(features.shape[1:]))
    assert shapes == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]
