"""Every registered network: shapes, gradients, blocks, memory format, seeds and state dicts."""

import copy

import pytest
import torch
from torch.nn import functional as F

import archs


def loss_of(output, labels):
    """Cross-entropy of the logits and, weighted, of the auxiliary logits."""
    if not isinstance(output, archs.AuxiliaryOutput):
        return F.cross_entropy(output, labels)
    auxiliary = zip(output.weights, output.auxiliary, strict=True)
    return F.cross_entropy(output.logits, labels) + sum(w * F.cross_entropy(logits, labels) for w, logits in auxiliary)


def test_training_step_reaches_every_parameter(name, small_images, randomise):
    model = randomise(archs.build(name, num_classes=7)).train()
    images = small_images(name)
    output = model(images)
    logits = output.logits if isinstance(output, archs.AuxiliaryOutput) else output
    assert logits.shape == (4, 7)
    loss_of(output, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert torch.isfinite(parameter.grad).all(), f"{key} has a gradient that is not finite"
        assert parameter.grad.any(), f"{key} has a gradient of zero"


def test_evaluation_gives_logits_alone(name, small_images):
    model = archs.build(name, num_classes=7).eval()
    with torch.no_grad():
        logits = model(small_images(name, batch=1))
    assert type(logits) is torch.Tensor
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


def test_blocks_compose_to_forward(name, small_images, randomise):
    model = randomise(archs.build(name, num_classes=7)).double().eval()
    images = small_images(name, dtype=torch.float64)
    calls = []
    with torch.no_grad():
        features = images
        for block in model.blocks():
            features = block(features)
        expected = model.head(features)
        for position, block in enumerate(model.blocks()):
            block.register_forward_hook(lambda *_, position=position: calls.append(position))
        assert torch.equal(model(images), expected)
    assert calls == list(range(len(calls))), "forward does not call the blocks once each, in the order of blocks()"


def test_blocks_hold_every_parameter_but_the_heads(name):
    with torch.device("meta"):
        model = archs.build(name, num_classes=7)
    held = [id(parameter) for block in model.blocks() for parameter in block.parameters()]
    assert len(held) == len(set(held)), "a parameter lies in two blocks"
    heads = [model.head, *([model.auxiliary] if getattr(model, "auxiliary", None) is not None else [])]
    rest = {id(parameter) for head in heads for parameter in head.parameters()}
    assert set(held) | rest == {id(parameter) for parameter in model.parameters()}
    assert not set(held) & rest


def test_channels_last_is_kept_and_changes_nothing(name, small_images, randomise):
    model = randomise(archs.build(name, num_classes=7)).double().eval()
    images = small_images(name, batch=2, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        for position, block in enumerate(model.blocks()):
            block.register_forward_hook(lambda _, __, out, at=position: formats.setdefault(at, out))
        formats = {}
        actual = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    for position, features in formats.items():
        assert features.is_contiguous(memory_format=torch.channels_last), f"block {position} left channels-last"


def test_the_seed_decides_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return archs.build(name, num_classes=7).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_state_dict_round_trip(name, small_images, randomise):
    model = randomise(archs.build(name, num_classes=7)).eval()
    other = archs.build(name, num_classes=7).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    images = small_images(name, batch=1)
    with torch.no_grad():
        assert torch.equal(model(images), other(images))


def test_bf16_autocast_trains(name, small_images):
    model = archs.build(name, num_classes=7).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(small_images(name))
        logits = output.logits if isinstance(output, archs.AuxiliaryOutput) else output
    assert logits.dtype == torch.bfloat16
    loss_of(output, torch.arange(4)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("side", [32, 33, 47])
@pytest.mark.parametrize("name", ["resnet18", "darknet53"])
def test_odd_and_small_images(name, side):
    model = archs.build(name, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, side, side + 10)).shape == (1, 3)


def test_the_least_side_that_is_declared_works_and_one_less_does_not(name):
    info = archs.lookup(name)
    with torch.device("meta"):
        model = archs.build(name, num_classes=3).eval()
        assert model(torch.empty(1, 3, info.minimum_size, info.minimum_size)).shape == (1, 3)
        if info.minimum_size > 1:
            with pytest.raises((ValueError, RuntimeError)):
                model(torch.empty(1, 3, info.minimum_size - 1, info.minimum_size - 1))


def test_full_resolution_inception_differs_from_the_paper_s_where_it_says():
    """What no count shows: the factors' order in the single 7x7 path, the last pooling, BatchNorm's eps."""
    with torch.device("meta"):
        paper, full = (archs.build(name, num_classes=7) for name in ("inceptionv3", "inceptionv3_fullres"))

    def kernels(path):
        return [layer.conv.kernel_size for layer in path]

    for block in ("b", "c", "d", "e"):
        theirs, ours = paper.stages[1].get_submodule(block), full.stages[1].get_submodule(block)
        assert kernels(theirs.branch7x7) == [(1, 1), (1, 7), (7, 1)]
        assert kernels(ours.branch7x7) == [(1, 1), (7, 1), (1, 7)]
        assert kernels(ours.branch7x7dbl) == kernels(theirs.branch7x7dbl)
    assert isinstance(full.stages[2].a.branch_pool, torch.nn.AvgPool2d)
    assert isinstance(full.stages[1].a.branch_pool, torch.nn.MaxPool2d)
    assert {m.eps for m in full.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-5}
    assert not any(isinstance(m, torch.nn.MaxPool2d) for m in full.stem)
