"""One graph: no network breaks under torch.compile, and compiled code computes the same."""

import pytest
import torch

import archs
from archs.networks.residual.resnet import Bottleneck, ResNet


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def logits_of(output):
    return output.logits if isinstance(output, archs.AuxiliaryOutput) else output


def assert_one_graph(name: str, images: torch.Tensor) -> None:
    """Captured whole by Dynamo and run as it is, the network computes what it did, gradients included."""
    model = archs.build(name, num_classes=7, image_size=images.shape[-1]).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    outputs, gradients = [], []
    for forward in (model, compiled):
        torch.manual_seed(1)
        outputs.append(forward(images))
        loss = logits_of(outputs[-1]).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    assert type(outputs[1]) is type(outputs[0])
    torch.testing.assert_close(logits_of(outputs[1]), logits_of(outputs[0]), rtol=1e-5, atol=1e-5)
    for (parameter, _), expected, found in zip(model.named_parameters(), *gradients, strict=True):
        assert (found is None) == (expected is None), parameter
        if expected is not None:
            largest = expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * largest + 1e-12, msg=parameter)


@pytest.mark.parametrize("name", ["resnet18", "inceptionv3", "alexnet"])
def test_training_step_is_one_graph(name, small_images):
    assert_one_graph(name, small_images(name))


@pytest.mark.slow
def test_every_network_is_one_graph(every_name, small_images):
    assert_one_graph(every_name, small_images(every_name))


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
