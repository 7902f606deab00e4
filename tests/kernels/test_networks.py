"""Whole networks through `kernels` against their plain selves: losses, gradients and running statistics, 20 steps."""

import copy

import pytest
import torch
from torch import nn

import archs
from archs.fused import Fusable, set_fused

STEPS = 20


def step(model, images, labels):
    """Loss and gradients of one step."""
    model.zero_grad()
    logits = model(images)
    loss = nn.functional.cross_entropy(getattr(logits, "logits", logits), labels)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(arch, size, steps, dtype):
    """Loss and gradient errors of plain and fused side by side, each step from the same weights and new images."""
    torch.manual_seed(0)
    plain = archs.build(arch, num_classes=5).to(memory_format=torch.channels_last).to(dtype).train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # no branch starts silent
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if hasattr(module, "rate") or isinstance(module, nn.Dropout):
            module.eval()
    fused = copy.deepcopy(plain)
    assert set_fused(fused, "on", "cpu")
    assert fused.state_dict().keys() == plain.state_dict().keys()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
    losses, errors = [], []
    for _ in range(steps):
        images = torch.randn(4, 3, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(5, (4,))
        loss, gradients = step(plain, images, labels)
        fused_loss, fused_gradients = step(fused, images, labels)
        assert fused_gradients.keys() == gradients.keys()
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        difference = torch.stack([(fused_gradients[name] - gradients[name]).norm() for name in gradients]).norm()
        losses.append(abs(fused_loss - loss) / abs(loss))
        errors.append((difference / norm).item())
        optimizer.step()
        # From the same weights again: what is compared is a step, not how a difference grows in a chaotic system.
        with torch.no_grad():
            for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
                ours.copy_(theirs)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for (name, ours), theirs in zip(fused.named_buffers(), plain.buffers(), strict=True):
        close = torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, theirs.abs().max().item()))
        assert close, f"{name}: {(ours - theirs).abs().max()}"
    with torch.no_grad():
        logits, reference = fused.eval()(images), plain.eval()(images)
    assert (logits - reference).norm() <= 10 * tolerance * reference.norm()
    return losses, errors


def hold(arch, size, steps):
    """In fp64 every gradient to 1e-10. In fp32 every loss to 1e-4, and the gradients in the median step.

    Not in every step: where a value falls on the other side of ReLU's kink, by a rounding, one element of a map of a
    few thousand takes another gradient. fp64 shows that nothing else differs.
    """
    losses, errors = compare(arch, size, max(1, steps // 10), torch.float64)
    assert max(losses) <= 1e-10 and max(errors) <= 1e-10
    losses, errors = compare(arch, size, steps, torch.float32)
    assert max(losses) <= 1e-4 and sorted(errors)[len(errors) // 2] <= 1e-4 and max(errors) <= 0.1


def test_mobilenetv1():
    hold("mobilenetv1_025", 33, 3)


def test_shufflenet_reads_its_shuffles_from_relabelled_weights():
    hold("shufflenet_g3", 33, 3)


ALL = {
    "mobilenetv1_025": 33, "mobilenetv2": 33, "xception": 39, "efficientnet_b0": 33, "shufflenet_g1": 33,
    "shufflenet_g2": 33, "shufflenet_g3": 33, "shufflenet_g4": 33, "shufflenet_g8": 33, "resnet18": 33,
    "se_resnet18": 33, "resnext50": 33, "darknet53": 33, "inceptionv3": 107,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("arch", ALL)
def test_twenty_steps(arch):
    hold(arch, ALL[arch], STEPS)


@pytest.mark.slow
def test_one_graph():
    torch.manual_seed(0)
    model = archs.build("mobilenetv1_025", num_classes=5).to(memory_format=torch.channels_last)
    set_fused(model, "on", "cpu")
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    compiled(images).sum().backward()
    model(images).sum().backward()
    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


def test_the_switch_reaches_every_layer_and_back():
    model = archs.build("mobilenetv1_025", num_classes=5)
    assert not set_fused(model, "auto", "cpu")
    assert set_fused(model, "on", "cpu")
    layers = [module for module in model.modules() if isinstance(module, Fusable)]
    assert len(layers) > 20 and all(layer.fused == "on" for layer in layers)
    set_fused(model, "off", "cpu")
    assert all(layer.fused == "off" for layer in layers)
