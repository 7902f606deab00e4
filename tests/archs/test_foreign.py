"""Networks of timm, of torchvision and of one's own: built by name, their units found, their heads replaced."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import archs
from engine.config import ConfigError, DataConfig, ModelConfig, RunConfig
from engine.step.finetune import freeze, layers_of
from engine.step.network import build_network
from engine.step.recompute import Policy, apply_policy, by_block, clear_policy

OWN = """
from torch import nn

class Block(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(first, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, images):
        return self.norm(self.conv(images)).relu()

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(Block(3), Block(8), Block(8))
        self.logits = nn.Linear(8, classes)

    def forward(self, images):
        return self.logits(self.body(images).mean(dim=(2, 3)))

def small(num_classes):
    return Net(num_classes)

class Deep(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.model = Net(classes)

    def forward(self, images):
        return self.model(images)

def deep(num_classes):
    return Deep(num_classes)

class Bare(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.logits = nn.Conv2d(3, 8, 3), nn.Linear(8, classes)

    def forward(self, images):
        return self.logits(self.conv(images).mean(dim=(2, 3)))

def bare(num_classes):
    return Bare(num_classes)

def headless(num_classes):
    return nn.Conv2d(3, num_classes, 1)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    return f"{tmp_path / 'mine.py'}:small"


@pytest.mark.parametrize(
    ("name", "units", "head"),
    [
        ("torchvision:resnet18", 8, "fc"),
        ("torchvision:mobilenet_v3_small", 13, "classifier"),
        ("timm:resnet18d", 8, "fc"),
        ("timm:vit_tiny_patch16_224", 12, "head"),
    ],
)
def test_units_are_the_blocks_that_follow_one_another(name, units, head):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    model = archs.build(name, 7, image_size=64).train()
    assert (len(list(model.blocks())), model.head_name) == (units, head)
    inside = sum(one.numel() for block in model.blocks() for one in block.parameters())
    assert inside > 0.5 * sum(one.numel() for one in model.parameters())
    layers = layers_of(model)
    assert sum(map(len, layers)) == len(list(model.parameters())) and len(layers) == units + 1


@pytest.mark.parametrize("kind", ["block", "segments"])
def test_recompute_changes_nothing(own, kind):
    torch.manual_seed(0)
    model, images = archs.build(own, 5, image_size=16).train(), torch.randn(4, 3, 16, 16)
    policy = by_block(3) if kind == "block" else Policy("segments", ((0, 3),))
    found = []
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for one in (Policy(), policy):
        model.load_state_dict(state)
        model.zero_grad()
        apply_policy(model, one)
        output = model(images)
        output.square().sum().backward()
        clear_policy(model)
        found.append([output.detach(), *(p.grad.clone() for p in model.parameters()), *model.state_dict().values()])
        found[-1] = [tensor.clone() for tensor in found[-1]]
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


def test_one_s_own_network_is_trained_and_frozen_by_its_units(own):
    model = build_network(RunConfig(model=ModelConfig(arch=own, finetune="1"), data=DataConfig(image_size=16)), 5)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".body.2." in name or ".logits." in name}
    assert model.arch == own and model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    freeze(model, "head")
    assert sum(one.requires_grad for one in model.parameters()) == 2


def test_units_are_found_in_a_network_that_lies_within_one_module(own):
    model = archs.build(own.replace(":small", ":deep"), 5, image_size=16)
    assert model.unit_names == ("model.body.0", "model.body.1", "model.body.2")


@pytest.mark.parametrize("factory", ["small", "deep", "bare"])
@pytest.mark.parametrize("kept", ["a run's", "its own", "a trainer's"])
def test_one_s_own_network_goes_on_from_its_weights(own, tmp_path, factory, kept):
    """Also where all of its names begin with what trainers put before theirs."""
    arch = own.replace(":small", f":{factory}")
    trained = archs.build(arch, 5, image_size=16)
    tensors = (trained if kept == "a run's" else trained.network).state_dict()
    before = "module." if kept == "a trainer's" else ""
    save_file({f"{before}{key}": tensor for key, tensor in tensors.items()}, tmp_path / "w.safetensors")
    asked = ModelConfig(arch=arch, pretrained=str(tmp_path / "w.safetensors"), finetune="head")
    model = build_network(RunConfig(model=asked, data=DataConfig(image_size=16)), 5)
    for key, tensor in trained.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


def test_published_weights_of_any_model_load_with_another_head(monkeypatch):
    import torchvision

    from engine.step.weights import pretrained

    theirs = torchvision.models.resnet18(num_classes=1000).state_dict()
    monkeypatch.setattr(pretrained, "library_weights", lambda name: theirs)
    name = "torchvision:resnet18"
    asked = RunConfig(model=ModelConfig(arch=name, pretrained=name), data=DataConfig(image_size=64))
    model = build_network(asked, 2, ["goldfish", "rose"])
    assert torch.equal(model.network.conv1.weight, theirs["conv1.weight"])
    assert torch.equal(model.network.fc.weight[0], theirs["fc.weight"][1]), "goldfish is ImageNet's second class"
    assert not torch.equal(model.network.fc.weight[1], theirs["fc.weight"][1])


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("timm:nothing_like_it", "timm has no model called 'nothing_like_it'"),
        ("torchvision:resnet19", "torchvision has no classifier called 'resnet19' .*resnet18"),
        ("timm:vit_tiny", r"near: vit_tiny_patch16_224, .*\)"),
        ("{}:headless", "Conv2d has no torch.nn.Linear, and no part called .*that could be its classifier; FACTORY is"),
        ("torchvision:inception_v3", r"cannot run on images \[2, 3, 16, 16\]: RuntimeError in conv.py, line \d+: Calc"),
    ],
)
def test_what_is_no_network_is_told(own, arch, told):
    if arch.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    asked = RunConfig(model=ModelConfig(arch=arch.format(own.rpartition(":")[0])), data=DataConfig(image_size=16))
    with pytest.raises(ConfigError, match=told):
        build_network(asked, 5)


@pytest.mark.parametrize("name", ["timm:qqq", "torchvision:qqq"])
def test_where_nothing_is_near_there_are_no_brackets(name):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(archs.UnknownArch, match=r"called 'qqq'$"):
        archs.lookup(name)


def test_adopted_networks_are_not_listed(own):
    archs.build(own, 3, image_size=16)
    assert own not in archs.names() and isinstance(archs.build(own, 3).network, nn.Module)
