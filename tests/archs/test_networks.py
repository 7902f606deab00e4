"""Every registered network: shapes, gradients, blocks, memory format, seeds and state dicts.

The sweep over all names runs on the meta device; what computes runs one network a file, and all with -m slow.
"""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import archs
from archs.layers import ChannelShuffle
from archs.networks.sequential.alexnet import LocalResponseNorm


def logits_of(output) -> Tensor:
    return output.logits if isinstance(output, archs.AuxiliaryOutput) else output


def loss_of(output, labels) -> Tensor:
    """Cross-entropy of the logits and, weighted, of the auxiliary logits."""
    if not isinstance(output, archs.AuxiliaryOutput):
        return F.cross_entropy(output, labels)
    auxiliary = zip(output.weights, output.auxiliary, strict=True)
    return F.cross_entropy(output.logits, labels) + sum(w * F.cross_entropy(logits, labels) for w, logits in auxiliary)


def build_small(name: str, images: Tensor, num_classes: int = 7, **options) -> archs.Classifier:
    """The network of that name for images of this size."""
    return archs.build(name, num_classes, image_size=images.shape[-1], **options)


SETTINGS = list(itertools.product((True, False), (1, 3), (10, 1000), ("reference", "smallest")))
"""Training or evaluation, input channels, classes, image side."""
PAIRWISE = {(True, 1, 1000, "reference"), (True, 3, 10, "smallest"), (False, 3, 1000, "smallest")}
"""Of these every value but one stands beside every other; the rest of the product is slow."""


@pytest.mark.parametrize(
    ("training", "in_channels", "num_classes", "side"),
    [setting if setting in PAIRWISE else pytest.param(*setting, marks=pytest.mark.slow) for setting in SETTINGS],
)
def test_forward_and_backward_at_every_setting(every_name, training, in_channels, num_classes, side):
    """At 224 pixels and at the smallest size, on the meta device: shapes, and a gradient for every parameter."""
    pixels = smallest_side(every_name) if side == "smallest" else max(224, archs.lookup(every_name).minimum_size)
    with torch.device("meta"):
        model = archs.build(every_name, num_classes, image_size=pixels, in_channels=in_channels).train(training)
        output = model(torch.empty(2, in_channels, pixels, pixels))
        assert logits_of(output).shape == (2, num_classes)
        assert isinstance(output, archs.AuxiliaryOutput) <= training
        loss_of(output, torch.zeros(2, dtype=torch.long)).backward()
    used = [key for key, parameter in model.named_parameters() if parameter.grad is not None]
    unused = {key for key, _ in model.named_parameters()} - set(used)
    assert not {key for key in unused if training or not key.startswith("auxiliary.")}


def smallest_side(name: str) -> int:
    """The smallest image that the network takes: what is declared, or one patch."""
    info = archs.lookup(name)
    if "image_size" not in archs.registry.options_of(name):
        return info.minimum_size
    for side in range(1, info.image_size + 1):
        try:
            with torch.device("meta"):
                archs.build(name, 10, image_size=side)
        except ValueError:
            continue
        return side
    raise AssertionError(f"{name} takes no size up to its own")


def test_the_smallest_side_is_the_smallest(every_name):
    """It works; one pixel less is refused by name when built and when run, and would not work if it were not."""
    side = smallest_side(every_name)
    with torch.device("meta"):
        model = archs.build(every_name, 3, image_size=side).eval()
        assert model(torch.empty(1, 3, side, side)).shape == (1, 3)
        if side == 1:
            return
        with pytest.raises(ValueError, match=rf"{side}x{side}|; {side} would do"):
            archs.build(every_name, 3, image_size=side - 1)
        with pytest.raises(ValueError, match=rf"{every_name} .*{side}x{side}"):
            model(torch.empty(1, 3, side - 1, side - 1))
        if model.fixed_size is None:
            model.minimum_size = 1
            with pytest.raises(RuntimeError):
                model(torch.empty(1, 3, side - 1, side - 1))


def test_blocks_hold_every_parameter_but_the_heads(every_name):
    with torch.device("meta"):
        model = archs.build(every_name, num_classes=7)
    held = [id(parameter) for block in model.blocks() for parameter in block.parameters()]
    assert len(held) == len(set(held)), "a parameter lies in two blocks"
    heads = [model.head, *([model.auxiliary] if getattr(model, "auxiliary", None) is not None else [])]
    rest = {id(parameter) for head in heads for parameter in head.parameters()}
    assert set(held) | rest == {id(parameter) for parameter in model.parameters()}
    assert not set(held) & rest


def test_the_last_layer_is_called_fc(every_name):
    """So that a head for other classes can be replaced: no other key has the number of classes in its shape.

    But in NIN, whose last convolution but one has a map a class as well: its head cannot be replaced.
    """
    with torch.device("meta"):
        ten, seven = (archs.build(every_name, num_classes).state_dict() for num_classes in (10, 7))
    changed = [key for key in ten if ten[key].shape != seven[key].shape]
    assert changed
    if every_name == "nin":  # its last layer then has as many inputs as classes, too
        assert {"head.fc.weight", "head.fc.bias"} < set(changed)
        return
    assert set(changed) <= set(archs.weights._classifiers(ten, seven, archs.weights.CLASSIFIER))


def test_training_step_reaches_every_parameter(name, small_images, randomise):
    images = small_images(name)
    model = randomise(build_small(name, images)).train()
    output = model(images)
    assert logits_of(output).shape == (4, 7)
    loss_of(output, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert torch.isfinite(parameter.grad).all(), f"{key} has a gradient that is not finite"
        assert parameter.grad.any(), f"{key} has a gradient of zero"


def test_evaluation_gives_logits_alone(name, small_images):
    images = small_images(name, batch=1)
    model = build_small(name, images).eval()
    with torch.no_grad():
        logits = model(images)
    assert type(logits) is Tensor
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


def test_blocks_compose_to_forward(name, small_images, randomise):
    images = small_images(name, batch=2, dtype=torch.float64)
    model = randomise(build_small(name, images)).double().eval()
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


class LayoutWatch(TorchDispatchMode):
    """Records each operator that writes a 4-D result in another layout, and counts the copies of 4-D tensors.

    Views write nothing: half the channels of a map are still laid out as the map is, also where they are changed in
    place. The results of attention, [N, heads, tokens, channels], are no maps.
    """

    COPIES = ("aten.clone", "aten._to_copy", "aten.copy_", "aten.contiguous")

    def __init__(self) -> None:
        super().__init__()
        self.other_layouts: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function.is_view or "attention" in str(function):
            return result
        maps = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.ndim == 4 and is_map(leaf)]
        self.copies += str(function).startswith(self.COPIES) and bool(maps)
        for features in [] if function._schema.is_mutable else maps:
            if not features.is_contiguous(memory_format=torch.channels_last):
                self.other_layouts.append(f"{function} -> {tuple(features.shape)}, strides {features.stride()}")
        return result


def is_map(tensor: Tensor) -> bool:
    """Whether the layout of a 4-D tensor shows: more than one channel and more than one pixel."""
    return tensor.shape[1] > 1 and tensor.shape[2] * tensor.shape[3] > 1


@pytest.mark.parametrize("training", [True, False])
def test_channels_last_from_the_first_layer_to_the_last(name, small_images, training):
    """No operator gives another layout, and none copies.

    But for the shuffles, each of which is a copy, and AlexNet's response normalisation, whose sums begin as one.

    AlexNet's and VGG's first linear layer reads the last map as [C, H, W], as the weights of everybody have it: one
    copy of that small map, named here. They run at 224 pixels, where their pooling to a fixed grid has nothing to do.
    """
    flattened = name.startswith(("alexnet", "vgg"))
    images = torch.randn(1, 3, 224, 224) if flattened else small_images(name, batch=2)
    images = images.to(memory_format=torch.channels_last)
    model = build_small(name, images).train(training).to(memory_format=torch.channels_last)
    copying = sum(isinstance(module, ChannelShuffle | LocalResponseNorm) for module in model.modules())
    with LayoutWatch() as watch:
        model(images)
    assert len(watch.other_layouts) <= flattened, watch.other_layouts
    assert all("aten.clone" in told for told in watch.other_layouts)
    assert watch.copies <= copying + flattened


def test_the_watch_sees_a_layout_copy():
    images = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    with LayoutWatch() as watch:
        nn.Conv2d(4, 4, 3)(images).contiguous()
    assert watch.copies == 1
    assert any("aten.clone" in told for told in watch.other_layouts)


def test_channels_last_changes_nothing(name, small_images, randomise):
    """Block by block from the same input: deep networks of random weights make 1e-6 of a last bit."""
    images = small_images(name, batch=2, dtype=torch.float64)
    model = randomise(build_small(name, images)).double().eval()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    features = images
    with torch.no_grad():
        for block, twin in zip([*model.blocks(), model.head], [*other.blocks(), other.head], strict=True):
            formatted = features.to(memory_format=torch.channels_last) if features.ndim == 4 else features
            features, actual = block(features), twin(formatted)
            torch.testing.assert_close(actual, features, rtol=1e-9, atol=1e-11 * float(features.abs().max()))


def test_the_seed_decides_the_weights_and_the_state_dict_is_all(name, small_images, randomise):
    images = small_images(name, batch=1)

    def seeded(seed: int) -> archs.Classifier:
        torch.manual_seed(seed)
        return build_small(name, images).eval()

    first, again, other = seeded(3), seeded(3).state_dict(), seeded(4)
    weights = first.state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert not all(torch.equal(weights[key], tensor) for key, tensor in other.state_dict().items())
    randomise(first)
    other.load_state_dict(copy.deepcopy(first.state_dict()), strict=True)
    with torch.no_grad():
        assert torch.equal(first(images), other(images))


def test_bf16_autocast_trains(name, small_images):
    images = small_images(name)
    model = build_small(name, images).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images)
    assert logits_of(output).dtype == torch.bfloat16
    loss_of(output, torch.arange(4)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("side", [33, 47])
@pytest.mark.parametrize("name", ["resnet18", "darknet53"])
def test_odd_and_small_images(name, side):
    model = archs.build(name, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, side, side + 10)).shape == (1, 3)


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
    assert isinstance(full.stages[2].a.branch_pool, nn.AvgPool2d)
    assert isinstance(full.stages[1].a.branch_pool, nn.MaxPool2d)
    assert {m.eps for m in full.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    assert not any(isinstance(m, nn.MaxPool2d) for m in full.stem)
