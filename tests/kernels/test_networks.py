"""Whole networks through `kernels` against their plain selves: losses, gradients and running statistics, 20 steps."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import archs
from archs.fused import Fusable, run, set_fused, settle
from archs.layers import ChannelShuffle, ConvNormAct, InvertedResidual, SqueezeExcite
from engine.config import DataConfig, ModelConfig, RunConfig
from engine.step.network import build_network
from engine.step.recompute import recompute_blocks

STEPS = 20


def step(model, images, labels):
    """Loss and gradients of one step."""
    model.zero_grad()
    logits = model(images)
    loss = nn.functional.cross_entropy(getattr(logits, "logits", logits), labels)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def smooth(model):
    """Put SiLU for every activation with a kink, and the mean for every maximum of neighbours."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                sides = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*sides))


def compare(arch, size, steps, dtype, kinks=True):
    """Loss and gradient errors of plain and fused side by side, each step from the same weights and new images."""
    torch.manual_seed(0)
    plain = archs.build(arch, num_classes=5).to(memory_format=torch.channels_last).to(dtype).train()
    if not kinks:
        smooth(plain)
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
        images = torch.randn(8, 3, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(5, (8,))
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
    """fp64: losses and gradients to 1e-10. fp32: losses to 1e-4, and gradients to 1e-4 without kinks (`smooth`).

    A value that a rounding puts on the other side of ReLU's kink, or another neighbour that it makes the largest of a
    pooling window, gives one element another gradient, about 1e-3 of the whole in these small maps; it happens in most
    steps of a deep network and says nothing of the operators.
    """
    losses, errors = compare(arch, size, max(1, steps // 10), torch.float64)
    assert max(losses) <= 1e-10 and max(errors) <= 1e-10
    losses, _ = compare(arch, size, steps, torch.float32)
    assert max(losses) <= 1e-4
    losses, errors = compare(arch, size, steps, torch.float32, kinks=False)
    assert max(losses) <= 1e-4 and max(errors) <= 1e-4


def test_mobilenetv1():
    hold("mobilenetv1_025", 48, 2)


class Called(TorchDispatchMode):
    """Within, this package's operators are counted by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if str(operator).startswith("hcr."):
            self.names[str(operator).removeprefix("hcr.").removesuffix(".default")] += 1
        return operator(*args, **(kwargs or {}))


def behind(last):
    """A pointwise layer, squeeze-and-excitation, and what comes behind it."""
    return nn.Sequential(ConvNormAct(6, 16, act=nn.SiLU), SqueezeExcite(16, 4, nn.SiLU), *last)


EXCITED = {
    "a projection": ([ConvNormAct(16, 10, act=None)], "excited_pointwise"),
    "a projection without BatchNorm": ([nn.Conv2d(16, 10, 1, bias=False)], "excited_pointwise"),
    "groups": ([ConvNormAct(16, 8, groups=2)], "squeeze_excite"),
    "a wider kernel": ([ConvNormAct(16, 8, 3)], "squeeze_excite"),
    "an activation": ([nn.ReLU()], "squeeze_excite"),
    "a shuffle": ([ChannelShuffle(4), ConvNormAct(16, 8)], "squeeze_excite"),
    "another": ([SqueezeExcite(16, 4), ConvNormAct(16, 8)], "excited_pointwise"),
    "nothing": ([], "squeeze_excite"),
}


@pytest.mark.parametrize("case", EXCITED)
@pytest.mark.parametrize("training", [True, False])
def test_an_excitation_goes_into_the_layer_behind_it_where_that_can_take_it(case, training):
    last, operator = EXCITED[case]
    torch.manual_seed(0)
    plain = behind(copy.deepcopy(last)).train(training)
    fused = copy.deepcopy(plain)
    set_fused(fused, "on", "cpu")
    images = torch.randn(3, 6, 5, 4)
    with Called() as called:
        found = settle(run(fused, images, "on"))
    wanted = plain(images)
    assert called.names[operator] == 1, called.names
    assert called.names["squeeze_excite"] + called.names["excited_pointwise"] == (2 if case == "another" else 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad((found * found).sum(), list(fused.parameters())),
        torch.autograd.grad((wanted * wanted).sum(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_block_with_an_excitation_is_one_graph():
    torch.manual_seed(0)
    block = InvertedResidual(8, 24, 8, squeezed=4, act=nn.SiLU)
    set_fused(block, "on", "cpu")
    images = torch.randn(2, 8, 6, 5)
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend="aot_eager")
    results = []
    for model in (compiled, block):
        y = model(images)
        results.append([y, *torch.autograd.grad((y * y).sum(), list(model.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_projection_of_efficientnet_takes_its_excitation():
    with torch.device("meta"):
        model = archs.build("efficientnet_b0", num_classes=5)
        set_fused(model, "on", "cpu")
        with Called() as called:
            model(torch.empty(2, 3, 64, 64))
    assert called.names["excited_pointwise"] == 16 and called.names["squeeze_excite"] == 0


def test_shufflenet_reads_its_shuffles_from_relabelled_weights():
    hold("shufflenet_g3", 48, 2)


ALL = {
    "mobilenetv1_025": 64, "mobilenetv2": 64, "xception": 71, "efficientnet_b0": 64, "shufflenet_g1": 64,
    "shufflenet_g2": 64, "shufflenet_g3": 64, "shufflenet_g4": 64, "shufflenet_g8": 64, "resnet18": 64,
    "se_resnet18": 64, "resnext50": 64, "darknet53": 64, "inceptionv3": 107,
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


def test_a_run_is_told_by_its_config():
    data = DataConfig(image_size=32)
    for asked, found in (("auto", "off"), ("on", "on"), ("off", "off")):
        model = build_network(RunConfig(model=ModelConfig(arch="mobilenetv1_025", fused=asked), data=data), 5)
        if asked == "auto" and torch.cuda.is_available():
            continue
        assert model.stem.fused == found


def test_recompute_repeats_a_fused_block_and_counts_its_batch_once():
    torch.manual_seed(0)
    plain = archs.build("mobilenetv1_025", num_classes=5).to(memory_format=torch.channels_last).double()
    set_fused(plain, "on", "cpu")
    recomputing = copy.deepcopy(plain)
    recompute_blocks(recomputing)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in (plain, recomputing):
        model(images).sum().backward()
    for ours, theirs in zip(recomputing.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(recomputing.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autocast_goes_through_in_bf16():
    torch.manual_seed(0)
    plain = archs.build("mobilenetv1_025", num_classes=5).to(memory_format=torch.channels_last).eval()
    fused = copy.deepcopy(plain)
    set_fused(fused, "on", "cpu")
    images = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features = fused.stages(fused.stem(images))
        reference = plain.stages(plain.stem(images))
    assert features.dtype == reference.dtype == torch.bfloat16
    assert (features - reference).float().norm() < 0.05 * reference.float().norm()
