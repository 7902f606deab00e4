"""torchvision's and timm's weights in our networks: the same outputs, gradients and statistics."""

import numpy
import pytest
import torch
import torchvision
from torch import nn

import archs
from archs.weights import WeightsMismatch, load_reference, load_weights, reference_of, rename

REFERENCED = {
    "resnet18": "torchvision:resnet18",
    "resnext50": "torchvision:resnext50_32x4d",
    "inceptionv3": "torchvision:inception_v3",
    "darknet53": "timm:darknet53",
}
"""Networks whose training is compared in full; test_references.py compares the outputs of all."""


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def renamed(tensors, name: str):
    return rename(tensors, reference_of(name, REFERENCED[name]))


@pytest.mark.parametrize("name", REFERENCED)
def test_training_equals_the_reference(name, loaded, small_images):
    """Logits, every gradient and every running statistic, after one step's forward and backward."""
    options = {"auxiliary": False} if name == "inceptionv3" else {}
    images = small_images(name, dtype=torch.float64)
    ours, theirs = (model.train() for model in loaded(name, REFERENCED[name], images.shape[-1], **options))
    if name == "inceptionv3":
        theirs.aux_logits, theirs.AuxLogits = False, None
    labels = torch.arange(4)
    outputs = [model(images) for model in (ours, theirs)]
    assert_same(*outputs)
    for output in outputs:
        nn.functional.cross_entropy(output, labels).backward()
    expected = renamed({key: p.grad for key, p in theirs.named_parameters()}, name)
    for key, parameter in ours.named_parameters():
        # Through a BatchNorm of few values gradients cancel to almost nothing: compare with the largest.
        scale = expected[key].abs().max()
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-8, atol=1e-8 * float(scale) + 1e-13)
    statistics = renamed(theirs.state_dict(), name)
    assert_same(ours.state_dict(), {key: statistics[key] for key in ours.state_dict()})


@pytest.mark.parametrize("side", [17, 20])
def test_auxiliary_head_equals_torchvision_s(side, loaded):
    ours, theirs = (model.train() for model in loaded("inceptionv3", "torchvision:inception_v3", 299))
    features = torch.randn(2, 768, side, side, dtype=torch.float64)
    outputs = [head(features) for head in (ours.auxiliary, theirs.AuxLogits)]
    assert_same(*outputs)


def test_inception_training_at_299_equals_torchvision_s(loaded):
    ours, theirs = (model.train() for model in loaded("inceptionv3", "torchvision:inception_v3", 299))
    images = torch.randn(2, 3, 299, 299, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = ours(images), theirs(images)
    assert_same(actual.logits, expected.logits)
    assert_same(actual.auxiliary[0], expected.aux_logits)


def test_tensorflow_scaling_is_torchvision_s_transform(loaded):
    ours, theirs = (
        model.eval() for model in loaded("inceptionv3", "torchvision:inception_v3", 75, tensorflow_scaling=True)
    )
    theirs.transform_input = True
    images = torch.randn(1, 3, 75, 75, dtype=torch.float64)
    with torch.no_grad():
        # The constants are single precision: 0.5 and 0.229 are not the same in it and in double.
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_single_precision_within_the_promise(loaded):
    """What a user loads: fp32, channels-last, relative error of the logits under 1e-4."""
    ours, theirs = (model.float().eval() for model in loaded("resnext50", REFERENCED["resnext50"], 64))
    ours.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(images)
        error = (ours(images.to(memory_format=torch.channels_last)) - expected).norm() / expected.norm()
    assert error < 1e-4


def same_distribution(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Two-sample Kolmogorov-Smirnov test at about 1e-4, on 20,000 values of each at most."""
    first, second = (numpy.sort(t.detach().flatten()[:20_000].numpy()) for t in (first, second))
    values = numpy.concatenate([first, second])
    gaps = numpy.searchsorted(first, values, side="right") - numpy.searchsorted(second, values, side="right")
    return bool(numpy.abs(gaps).max() / len(first) <= 2.2 * numpy.sqrt(2 / len(first)))


@pytest.mark.parametrize("name", REFERENCED)
def test_initialisation_draws_as_the_reference_does(name):
    library, _, model = REFERENCED[name].partition(":")
    drawn = {"init_weights": True} if name == "inceptionv3" else {}
    if library == "timm":
        timm = pytest.importorskip("timm", reason=f"timm is not installed: {name}'s draw cannot be compared")
        theirs = timm.create_model(model, num_classes=1000, pretrained=False)
    else:
        theirs = torchvision.models.get_model(model, num_classes=1000, **drawn)
    expected = renamed(dict(theirs.named_parameters()), name)
    ours = dict(archs.build(name, 1000).named_parameters())
    assert ours.keys() == expected.keys()
    different = [key for key, parameter in ours.items() if not same_distribution(parameter, expected[key])]
    assert not different


@pytest.mark.parametrize("name", ["inceptionv3_fullres", "resnext29_2x64d"])
def test_the_learning_repository_s_networks_start_at_torch_s_defaults(name):
    for module in archs.build(name, 10).modules():
        if isinstance(module, nn.Conv2d):
            default = nn.Conv2d(
                module.in_channels, module.out_channels, module.kernel_size, groups=module.groups, bias=False
            )
            assert same_distribution(module.weight, default.weight)


def test_zero_initialised_residuals_are_an_option():
    blocks = archs.build("resnet18", 10, zero_init_residual=True).stages[0]
    assert not any(block.conv2.bn.weight.any() for block in blocks)
    blocks = archs.build("resnext50", 10, zero_init_residual=True).stages[0]
    assert not any(block.conv3.bn.weight.any() for block in blocks)
    blocks = archs.build("darknet53", 10, zero_init_last=False).stages[0]
    assert blocks[1].conv2.bn.weight.all()


@pytest.fixture(scope="module")
def weights():
    return torchvision.models.resnet18(num_classes=10).state_dict()


class TestMismatch:
    reference = "torchvision:resnet18"

    @pytest.fixture
    def model(self):
        return archs.build("resnet18", 10)

    def load(self, model, weights):
        return load_reference(model, weights, "resnet18", self.reference)

    def test_missing_key_is_named(self, model, weights):
        weights = {key: tensor for key, tensor in weights.items() if key != "layer3.1.bn2.bias"}
        with pytest.raises(WeightsMismatch, match=r"1 missing: stages\.2\.1\.conv2\.bn\.bias$"):
            self.load(model, weights)

    def test_left_over_key_is_named(self, model, weights):
        with pytest.raises(WeightsMismatch, match=r"1 left over: ema\.decay$"):
            self.load(model, {**weights, "ema.decay": torch.ones(())})

    def test_a_misspelt_key_is_told_the_nearest(self, model, weights):
        weights = {key.replace("layer3.1.bn2.bias", "layer3.1.bn2.bais"): tensor for key, tensor in weights.items()}
        with pytest.raises(WeightsMismatch, match=r"left over: stages\.2\.1\.conv2\.bn\.bais \(nearest: .*bn\.bias\)"):
            self.load(model, weights)

    def test_other_shape_is_named_and_nothing_is_loaded(self, model, weights):
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(WeightsMismatch, match=r"of another shape: stem.conv.conv.weight \[64, 3, 5, 5\] for our"):
            self.load(model, {**weights, "conv1.weight": torch.ones(64, 3, 5, 5)})
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    def test_a_head_of_another_size_is_kept_and_named(self, model, weights):
        before = model.head.fc.weight.clone()
        loaded = self.load(model, {**weights, "fc.weight": torch.ones(9, 512), "fc.bias": torch.ones(9)})
        assert loaded.replaced == ("head.fc.weight", "head.fc.bias")
        assert torch.equal(model.head.fc.weight, before)
        assert torch.equal(model.stem.conv.conv.weight, weights["conv1.weight"])

    def test_many_keys_are_counted(self, model):
        with pytest.raises(WeightsMismatch, match=r"102 missing: stem.conv.conv.weight, .* and 97 more"):
            self.load(model, {})

    def test_two_keys_for_one_place(self, model, weights):
        twice = {**weights, "head.fc.bias": weights["fc.bias"]}
        with pytest.raises(WeightsMismatch, match=r"two keys would become 'head\.fc\.bias'"):
            self.load(model, twice)

    def test_unknown_reference_lists_the_known(self, model, weights):
        with pytest.raises(ValueError, match=r"'torchvision:resnet19'.*torchvision:resnet18"):
            load_reference(model, weights, "resnet18", "torchvision:resnet19")

    def test_a_pretrained_tag_does_not_matter(self):
        assert reference_of("darknet53", "timm:darknet53.c2ns_in1k").source == "timm:darknet53"

    def test_old_checkpoints_lack_num_batches_tracked(self, model, weights):
        old = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
        self.load(model, old)
        assert torch.equal(model.head.fc.weight, weights["fc.weight"])

    def test_dtype_stays_the_model_s(self, model, weights):
        self.load(model.double(), weights)
        assert model.head.fc.weight.dtype == torch.float64


class TestUnknownOrigin:
    """Weights from a file: whose keys they have is found out."""

    def test_a_library_s(self, weights):
        model = archs.build("resnet18", 10)
        assert load_weights(model, weights, "resnet18").source == "torchvision:resnet18"
        assert torch.equal(model.head.fc.weight, weights["fc.weight"])

    def test_ours(self):
        trained, model = archs.build("resnet18", 10), archs.build("resnet18", 7)
        loaded = load_weights(model, trained.state_dict(), "resnet18")
        assert (loaded.source, loaded.replaced) == ("hcr", ("head.fc.weight", "head.fc.bias"))
        assert torch.equal(model.stem.conv.conv.weight, trained.stem.conv.conv.weight)

    def test_weights_without_auxiliary_heads(self):
        model = archs.build("inceptionv3", 10)
        trained = archs.build("inceptionv3", 10, auxiliary=False)
        loaded = load_weights(model, trained.state_dict(), "inceptionv3")
        assert loaded.replaced and all(key.startswith("auxiliary.") for key in loaded.replaced)

    def test_nobody_s_are_told_about_the_closest_match(self, weights):
        foreign = {key: tensor for key, tensor in weights.items() if not key.startswith("layer4")}
        with pytest.raises(WeightsMismatch, match=r"do not fit as torchvision:resnet18: .*missing: stages\.3\.0"):
            load_weights(archs.build("resnet18", 10), foreign, "resnet18")
