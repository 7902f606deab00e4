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


def compare(arch, size, steps=STEPS, **options):
    """Train plain and fused side by side on the same batches, each step from the same weights."""
    torch.manual_seed(0)
    plain = archs.build(arch, num_classes=5, **options).to(memory_format=torch.channels_last).train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # no branch starts silent
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if hasattr(module, "rate") or isinstance(module, nn.Dropout):
            module.eval()
    fused = copy.deepcopy(plain)
    assert set_fused(fused, "on", "cpu")
    assert fused.state_dict().keys() == plain.state_dict().keys()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (plain, fused)]
    for _ in range(steps):
        images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(5, (4,))
        loss, gradients = step(plain, images, labels)
        fused_loss, fused_gradients = step(fused, images, labels)
        assert fused_loss == pytest.approx(loss, rel=1e-4)
        assert fused_gradients.keys() == gradients.keys()
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        difference = torch.stack([(fused_gradients[name] - gradients[name]).norm() for name in gradients]).norm()
        assert difference <= 1e-4 * norm
        for optimizer in optimizers:
            optimizer.step()
        # From the same weights again: what is compared is a step, not how a difference grows in a chaotic system.
        with torch.no_grad():
            for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
                ours.copy_(theirs)
    for (name, ours), theirs in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(images), plain.eval()(images), rtol=1e-3, atol=1e-4)


def test_mobilenetv1():
    compare("mobilenetv1_025", 33, steps=3)


def test_shufflenet_reads_its_shuffles_from_relabelled_weights():
    compare("shufflenet_g3", 33, steps=2)


ALL = {
    "mobilenetv1_025": 33, "mobilenetv2": 33, "xception": 39, "efficientnet_b0": 33, "shufflenet_g1": 33,
    "shufflenet_g2": 33, "shufflenet_g3": 33, "shufflenet_g4": 33, "shufflenet_g8": 33, "resnet18": 33,
    "se_resnet18": 33, "resnext50": 33, "darknet53": 33, "inceptionv3": 107,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("arch", ALL)
def test_twenty_steps(arch):
    compare(arch, ALL[arch])


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
