"""Our weights under a library's keys: loading them here was the renaming, and this is its inverse."""

import pytest
import torch

import archs
from archs import registry
from archs.weights import load_reference
from engine.config import ConfigError
from engine.use.export.library_keys import library_model, reference_for, under_library_keys

SIDES = {"inceptionv3": 75, "alexnet_owt": 63, "vit_b32": 64}
QUICK = {"resnet18", "googlenet", "mobilenetv1", "shufflenetv2_x1_0"}
PAIRS = [(name, source) for name in archs.names() for source in archs.lookup(name).peers]


@pytest.mark.parametrize(
    ("name", "source"),
    [pytest.param(*pair, id="-".join(pair), marks=() if pair[0] in QUICK else pytest.mark.slow) for pair in PAIRS],
)
def test_the_library_s_own_model_answers_as_ours(name, source):
    if source.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    side = SIDES.get(name, 32)
    torch.manual_seed(0)
    options = {"auxiliary": False} if "auxiliary" in registry.options_of(name) else {}
    ours = archs.build(name, 7, image_size=side, **options).eval()
    with torch.no_grad():
        for tensor in [*ours.parameters(), *ours.buffers()]:
            drawn = tensor.ndim > 1 and bool(tensor.std() > 0)  # a hundred layers of more would end in infinities
            if tensor.is_floating_point() and not drawn:
                tensor.add_(torch.rand_like(tensor), alpha=0.02)
    theirs = library_model(source, 7, side).eval()
    theirs.load_state_dict(under_library_keys(ours.state_dict(), reference_for(name, source.partition(":")[0]), theirs))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = ours(images)
        torch.testing.assert_close(theirs(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    back = archs.build(name, 7, image_size=side, **options)
    load_reference(back, theirs.state_dict(), name, source)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


def test_a_library_s_network_of_another_size_goes_back_under_its_own_keys():
    """Its name says nothing of whether it is built for one size: timm's own description does."""
    pytest.importorskip("timm", reason="timm is not installed")
    ours = archs.build("timm:test_vit", 3, image_size=32).eval()
    theirs = library_model("timm:test_vit", 3, 32).eval()
    theirs.load_state_dict(under_library_keys(ours.state_dict(), reference_for("timm:test_vit", "timm"), theirs))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(theirs(images), ours(images))


def test_auxiliary_heads_go_along():
    ours = archs.build("googlenet", 5)
    torch.nn.init.normal_(ours.state_dict()["head.fc.bias"])
    theirs = library_model("torchvision:googlenet", 5, 64, auxiliary=True)
    theirs.load_state_dict(under_library_keys(ours.state_dict(), reference_for("googlenet", "torchvision"), theirs))
    back = archs.build("googlenet", 5)
    load_reference(back, theirs.state_dict(), "googlenet", "torchvision:googlenet")
    assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "library", "told"),
    [
        ("nin", "timm", "no library has it"),
        ("darknet53", "torchvision", "it has that of timm:darknet53"),
    ],
)
def test_a_network_without_such_a_model_is_told(name, library, told):
    with pytest.raises(ConfigError, match=f"{name} has no model of {library} to be saved as .*{told}"):
        reference_for(name, library)
