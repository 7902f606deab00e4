"""One graph: no network breaks under torch.compile, and compiled code computes the same."""

import pytest
import torch

import archs
from archs.resnet import Bottleneck, ResNet


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def logits_of(output):
    return output.logits if isinstance(output, archs.AuxiliaryOutput) else output


@pytest.mark.parametrize("name", ["resnet18", "inceptionv3"])
def test_training_forward_is_one_graph(name, small_images):
    """Captured by Dynamo and run as it is: residual sums, joined branches and the auxiliary output."""
    model = archs.build(name, num_classes=7).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = small_images(name)
    torch.manual_seed(1)
    expected = model(images)
    torch.manual_seed(1)
    actual = compiled(images)
    assert type(actual) is type(expected)
    torch.testing.assert_close(logits_of(actual), logits_of(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_network_is_one_graph(name, small_images):
    compiled = torch.compile(archs.build(name, num_classes=7).train(), fullgraph=True, backend="eager")
    assert logits_of(compiled(small_images(name))).shape == (4, 7)


@pytest.mark.slow
def test_inductor_trains_a_small_residual_network():
    model = ResNet(Bottleneck, (1, 1), num_classes=5, groups=2, group_width=8).train()
    model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    gradients = []
    for forward in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        forward(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
