"""A run's network: options, sizes, and weights from a file or a library."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import archs
from engine.config import ConfigError, DataConfig, ModelConfig, RunConfig
from engine.step import network
from engine.step.weights import pretrained


def config(arch="resnet18", image_size=64, progressive_from=0, **model) -> RunConfig:
    data = DataConfig(image_size=image_size, progressive_from=progressive_from)
    return RunConfig(model=ModelConfig(arch=arch, **model), data=data)


@pytest.fixture(scope="module")
def published():
    """A library's state dict for 12 classes, with values of its own."""
    torch.manual_seed(5)
    return torchvision.models.resnet18(num_classes=12).state_dict()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"arch": "resnt18"}, "nearest: resnet18"),
        ({"width": 0.5}, "resnet18 takes no option 'width'"),
        ({"arch": "inceptionv3", "image_size": 64}, "at least 75x75 pixels, not 64x64"),
        ({"arch": "inceptionv3", "image_size": 80, "progressive_from": 64}, "at least 75x75 pixels, not .64, 64."),
        ({"pretrained": "timm:vgg11"}, "takes no weights from 'timm:vgg11'"),
        ({"pretrained": "nowhere.pth"}, "nowhere.pth: no such file"),
    ],
)
def test_what_cannot_be_built_is_told(asked, told):
    with pytest.raises(ConfigError, match=told):
        network.build_network(config(**asked), 10)


def test_a_library_s_weights(published, monkeypatch, caplog):
    caplog.set_level("INFO", logger="hcr")
    monkeypatch.setattr(pretrained, "library_weights", lambda name: published)
    model = network.build_network(config(pretrained="torchvision:resnet18"), 10)
    assert torch.equal(model.stem.conv.conv.weight, published["conv1.weight"])
    assert "weights of torchvision:resnet18 loaded" in caplog.text
    assert "; head.fc.weight, head.fc.bias start anew" in caplog.text


def test_a_library_that_cannot_be_reached(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    told = r"^--pretrained torchvision:resnet18: torchvision cannot give these weights: no route"
    with pytest.raises(ConfigError, match=told):
        network.build_network(config(pretrained="torchvision:resnet18"), 10)


def test_published_inception_weights_come_with_their_scaling(monkeypatch):
    theirs = torchvision.models.inception_v3(init_weights=False).state_dict()
    monkeypatch.setattr(pretrained, "library_weights", lambda name: theirs)
    asked = config("inceptionv3", 75, pretrained="torchvision:inception_v3")
    assert "scaling" in dict(network.build_network(asked, 1000).stem.named_children())
    assert network.network_options(asked.model) == {"tensorflow_scaling": True}
    assert "scaling" not in dict(network.build_network(config("inceptionv3", 75), 10).stem.named_children())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_a_file(published, kind, tmp_path):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(published, path)
    else:
        parallel = {f"module.{key}": tensor for key, tensor in published.items()}
        torch.save({"epoch": 3, "state_dict": parallel} if kind == "wrapped" else published, path)
    model = network.build_network(config(pretrained=str(path)), 12)
    assert torch.equal(model.head.fc.weight, published["fc.weight"])


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("this must not be printed",))

    torch.save({"state_dict": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        network.build_network(config(pretrained=str(tmp_path / "bad.pth")), 10)


def test_a_file_of_another_network_names_keys(tmp_path):
    torch.save(archs.build("darknet53", 10).state_dict(), tmp_path / "darknet.pth")
    with pytest.raises(ConfigError, match=r"darknet.pth: these weights do not fit as hcr: \d+ missing"):
        network.build_network(config(pretrained=str(tmp_path / "darknet.pth")), 10)


def test_a_file_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        network.build_network(config(pretrained=str(tmp_path / "empty.pth")), 10)
