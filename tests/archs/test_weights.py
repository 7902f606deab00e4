"""torchvision's and timm's weights in our networks: the same outputs, gradients and statistics."""

import numpy
import pytest
import torch
import torchvision
from torch import nn

import archs
from archs.weights import WeightsMismatch, load_reference, rename

TORCHVISION = {"resnet18": 32, "resnext50": 32, "inceptionv3": 75}
REFERENCED = [*TORCHVISION, "darknet53"]


def reference_of(name: str, num_classes: int, **options) -> nn.Module:
    library, model = archs.lookup(name).reference.split(":")
    if library == "timm":
        timm = pytest.importorskip("timm", reason="timm is not installed: darknet53's weights cannot be compared")
        return timm.create_model(model.split(".")[0], num_classes=num_classes, pretrained=False)
    if name == "inceptionv3":
        # Its own draw takes seconds; the tests that need it ask for it.
        options = {"init_weights": False, "dropout": 0.0, **options}
    return torchvision.models.get_model(model, num_classes=num_classes, **options)


def pair(name: str, randomise, **options) -> tuple[nn.Module, nn.Module]:
    """(ours, the reference), in float64, with the same weights and BatchNorm statistics, without dropout."""
    theirs = randomise(reference_of(name, 10, **options)).double()
    ours_only = {"dropout": 0.0} if name == "inceptionv3" else {}
    if options.get("aux_logits") is False:
        ours_only["auxiliary"] = False
    ours = archs.build(name, 10, **ours_only).double()
    load_reference(ours, theirs.state_dict(), archs.lookup(name).reference)
    return ours, theirs


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", REFERENCED)
def test_evaluation_equals_the_reference(name, randomise):
    ours, theirs = pair(name, randomise)
    side = TORCHVISION.get(name, 32)
    images = torch.randn(2, 3, side, side + 11, dtype=torch.float64)
    with torch.no_grad():
        assert_same(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", REFERENCED)
def test_training_equals_the_reference(name, randomise):
    """Logits, every gradient and every running statistic, after one step's forward and backward."""
    options = {"aux_logits": False} if name == "inceptionv3" else {}
    ours, theirs = (model.train() for model in pair(name, randomise, **options))
    side = TORCHVISION.get(name, 32)
    images = torch.randn(4, 3, side, side, dtype=torch.float64)
    labels = torch.arange(4)
    outputs = [model(images) for model in (ours, theirs)]
    assert_same(*outputs)
    for output in outputs:
        nn.functional.cross_entropy(output, labels).backward()
    reference = archs.lookup(name).reference
    expected = rename({key: p.grad for key, p in theirs.named_parameters()}, reference)
    for key, parameter in ours.named_parameters():
        # Through a BatchNorm of few values gradients cancel to almost nothing: compare with the largest.
        scale = expected[key].abs().max()
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-8, atol=1e-8 * float(scale) + 1e-13)
    statistics = rename(theirs.state_dict(), reference)
    assert_same(ours.state_dict(), {key: statistics[key] for key in ours.state_dict()})


@pytest.mark.parametrize("side", [17, 20])
def test_auxiliary_head_equals_torchvision_s(side, randomise):
    ours, theirs = (model.train() for model in pair("inceptionv3", randomise))
    features = torch.randn(2, 768, side, side, dtype=torch.float64)
    outputs = [head(features) for head in (ours.auxiliary, theirs.AuxLogits)]
    assert_same(*outputs)


def test_inception_training_at_299_equals_torchvision_s(randomise):
    ours, theirs = (model.train() for model in pair("inceptionv3", randomise))
    images = torch.randn(2, 3, 299, 299, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = ours(images), theirs(images)
    assert_same(actual.logits, expected.logits)
    assert_same(actual.auxiliary[0], expected.aux_logits)


def test_tensorflow_scaling_is_torchvision_s_transform(randomise):
    theirs = randomise(reference_of("inceptionv3", 10, transform_input=True)).double().eval()
    ours = archs.build("inceptionv3", 10, tensorflow_scaling=True).double().eval()
    load_reference(ours, theirs.state_dict(), "torchvision:inception_v3")
    images = torch.randn(1, 3, 75, 75, dtype=torch.float64)
    with torch.no_grad():
        # The constants are single precision: 0.5 and 0.229 are not the same in it and in double.
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_single_precision_within_the_promise(randomise):
    """What a user loads: fp32, channels-last, relative error of the logits under 1e-4."""
    theirs = randomise(reference_of("resnext50", 10)).eval()
    ours = archs.build("resnext50", 10).eval().to(memory_format=torch.channels_last)
    load_reference(ours, theirs.state_dict(), "torchvision:resnext50_32x4d")
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
    theirs = reference_of(name, 1000, **({"init_weights": True} if name == "inceptionv3" else {}))
    expected = rename(dict(theirs.named_parameters()), archs.lookup(name).reference)
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

    def test_missing_key_is_named(self, model, weights):
        weights = {key: tensor for key, tensor in weights.items() if key != "layer3.1.bn2.bias"}
        with pytest.raises(WeightsMismatch, match=r"1 missing: stages\.2\.1\.conv2\.bn\.bias$"):
            load_reference(model, weights, self.reference)

    def test_left_over_key_is_named(self, model, weights):
        with pytest.raises(WeightsMismatch, match=r"1 left over: ema\.decay$"):
            load_reference(model, {**weights, "ema.decay": torch.ones(())}, self.reference)

    def test_other_shape_is_named_and_nothing_is_loaded(self, model, weights):
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(WeightsMismatch, match=r"1 of another shape: head.fc.weight \[9, 512\] for our \[10, 512\]"):
            load_reference(model, {**weights, "fc.weight": torch.ones(9, 512)}, self.reference)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    def test_many_keys_are_counted(self, model):
        with pytest.raises(WeightsMismatch, match=r"102 missing: stem.conv.conv.weight, .* and 97 more"):
            load_reference(model, {}, self.reference)

    def test_two_keys_for_one_place(self, model, weights):
        twice = {**weights, "head.fc.bias": weights["fc.bias"]}
        with pytest.raises(WeightsMismatch, match=r"two keys would become 'head\.fc\.bias'"):
            load_reference(model, twice, self.reference)

    def test_unknown_reference_lists_the_known(self, model, weights):
        with pytest.raises(ValueError, match=r"'torchvision:resnet19'.*torchvision:resnet18"):
            load_reference(model, weights, "torchvision:resnet19")

    def test_old_checkpoints_lack_num_batches_tracked(self, model, weights):
        old = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
        load_reference(model, old, self.reference)
        assert torch.equal(model.head.fc.weight, weights["fc.weight"])

    def test_dtype_stays_the_model_s(self, model, weights):
        load_reference(model.double(), weights, self.reference)
        assert model.head.fc.weight.dtype == torch.float64
