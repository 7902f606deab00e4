"""Weights as people's tools write them, in both file formats; what is no state dict is said in one sentence."""

import argparse
import pathlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import archs
from engine.config import ConfigError
from engine.step.weights.files import read_weight_file, without_prefixes


@pytest.fixture(scope="module")
def network():
    return archs.build("convnet_bn", 2)


def under(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "net."],
)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_prefixes_are_taken_off(network, tmp_path, prefix, ending):
    """W11."""
    path, state = tmp_path / f"weights.{ending}", network.state_dict()
    if ending == "pth":
        torch.save(under(prefix, state), path)
    else:
        save_file(under(prefix, state), path)
    found = read_weight_file(path, "weights")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_compiled_part_keeps_its_place():
    one = torch.zeros(1)
    assert set(without_prefixes({"stem._orig_mod.conv.weight": one, "head.weight": one})) == {
        "stem.conv.weight",
        "head.weight",
    }


def test_counters_of_averages_are_dropped(network, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(network)
    torch.save(average.state_dict(), tmp_path / "swa.pth")
    save_file(average.state_dict(), tmp_path / "swa.safetensors")
    for name in ("swa.pth", "swa.safetensors"):
        assert read_weight_file(tmp_path / name, "weights").keys() == network.state_dict().keys()


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_what_scripts_keep_beside_the_weights(network, tmp_path, wrapper):
    beside = {
        "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("photos"), betas=(0.9, 0.99)),
        "best": np.float64(0.5),
        "epoch": 3,
        wrapper: under("module.", network.state_dict()),
    }
    torch.save(beside, tmp_path / "checkpoint.pth")
    assert read_weight_file(tmp_path / "checkpoint.pth", "weights").keys() == network.state_dict().keys()


class Evil:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("/tmp/hcr-was-run"),))


def other_files(network, folder):
    """(file, words of the message)."""
    torch.save(network, folder / "whole.pth")
    yield "whole.pth", "holds more than tensors"
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "scripted.pt")
    yield "scripted.pt", "TorchScript"
    torch.save({"weights": Evil()}, folder / "evil.pth")
    yield "evil.pth", "would have to be run"
    (folder / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    yield "evil.pkl", "cannot be read as weights"
    (folder / "empty.pth").touch()
    yield "empty.pth", "is empty"
    (folder / "empty.safetensors").touch()
    yield "empty.safetensors", "is empty"
    (folder / "garbage.pth").write_bytes(b"\x00garbage" * 50)
    yield "garbage.pth", "weights"
    (folder / "garbage.safetensors").write_bytes(b"\xff" * 500)
    yield "garbage.safetensors", "cannot be read as weights"
    torch.save({"lr": 0.1}, folder / "numbers.pth")
    yield "numbers.pth", "holds no state dict"
    torch.save(torch.zeros(3), folder / "tensor.pth")
    yield "tensor.pth", "holds no state dict"
    torch.save(network.state_dict(), folder / "whole")
    data = bytearray((folder / "whole").read_bytes())
    (folder / "cut.pth").write_bytes(data[: len(data) // 2])
    yield "cut.pth", "weights"
    data[len(data) // 2] ^= 1
    (folder / "flipped.pth").write_bytes(data)
    yield "flipped.pth", "does not match its checksum"
    (folder / "folder").mkdir()
    yield "folder", "without model.safetensors"
    yield "nowhere.pth", "no such file"


def test_what_is_no_state_dict_is_one_sentence(network, tmp_path):
    """Never torch's advice to set weights_only=False, and nothing is run."""
    for name, words in other_files(network, tmp_path):
        with pytest.raises(ConfigError) as told:
            read_weight_file(tmp_path / name, f"--pretrained {name}")
        message = str(told.value)
        assert message.startswith(f"--pretrained {name}") and words in message, message
        assert "weights_only" not in message and "\n" not in message, message
    assert not pathlib.Path("/tmp/hcr-was-run").exists()


def test_a_stem_for_two_channels_says_both_shapes(tmp_path):
    from engine.step.weights.pretrained import load_pretrained

    network = archs.build("resnet18", 2)
    state = network.state_dict()
    first = next(name for name, tensor in state.items() if tensor.shape[1:2] == (3,))
    torch.save(state | {first: state[first][:, :2]}, tmp_path / "grey.pth")
    with pytest.raises(ConfigError, match=r"of another shape: .*\[64, 2, 7, 7\] for our \[64, 3, 7, 7\]"):
        load_pretrained(network, str(tmp_path / "grey.pth"))
