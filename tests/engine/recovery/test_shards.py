"""Tensors in parts: put together again, and read by torch's own reader."""

import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from engine.config import ConfigError
from engine.recovery.portable import count_of, load_parts, optimizer_order, parts_of, restore_count, source_of
from engine.recovery.shards import Part, Shards, write_parts

WHOLE = torch.arange(35.0).view(7, 5)


@pytest.fixture
def folder(tmp_path):
    """Three ranks' parts of a matrix, and a number that the first one has."""
    cuts = ((0, 3), (3, 6), (6, 7))
    for rank, (start, end) in enumerate(cuts):
        parts = [Part("model.weight", WHOLE[start:end], (start, 0))]
        parts += [Part("optimizer.weight.step", torch.tensor(9.0), ())] if rank == 0 else []
        write_parts(tmp_path / "shards", rank, 3, parts)
    return tmp_path / "shards"


def test_parts_are_put_together(folder):
    shards = Shards(folder)
    assert sorted(shards.names()) == ["model.weight", "optimizer.weight.step"]
    assert torch.equal(shards.whole("model.weight"), WHOLE)
    assert shards.whole("optimizer.weight.step").item() == 9.0
    with pytest.raises(KeyError):
        shards.whole("model.bias")


def test_runs_of_elements_are_put_together_in_their_shape(tmp_path):
    """As ZeRO cuts: in the middle of a row, and not in equal pieces."""
    flat = WHOLE.reshape(-1)
    for rank, (start, end) in enumerate(((0, 13), (13, 26), (26, 35))):
        parts = [Part("model.weight", flat[start:end], (start,), (7, 5))]
        parts += [Part("model.bias", flat[:5], (0,), (1, 5))] if rank == 1 else []
        write_parts(tmp_path / "shards", rank, 3, parts)
    shards = Shards(tmp_path / "shards")
    assert torch.equal(shards.whole("model.weight"), WHOLE)
    assert torch.equal(shards.whole("model.bias"), WHOLE[:1])


def test_torchs_own_reader_takes_them(folder):
    state = {"model.weight": torch.zeros(7, 5)}
    load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert torch.equal(state["model.weight"], WHOLE)


def test_a_file_of_something_else_is_told(folder):
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        Shards(folder)


def stepped(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("form", ["shards", "trainer.pt"])
def test_a_state_goes_from_one_to_another(tmp_path, form):
    """Weights, statistics, moments and counts, from parts or from what one process wrote."""
    model, optimizer = stepped(0)
    other, theirs = stepped(1)
    state = {}
    if form == "shards":
        write_parts(tmp_path / "shards", 0, 1, parts_of(model, optimizer))
    else:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    load_parts(source_of(tmp_path, state, optimizer_order(other, theirs)), other, theirs)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    for mine, ours in zip(other.parameters(), model.parameters(), strict=True):
        assert all(torch.equal(theirs.state[mine][key], value) for key, value in optimizer.state[ours].items())


def test_another_networks_state_is_refused(tmp_path):
    model, optimizer = stepped(0)
    write_parts(tmp_path / "shards", 0, 1, parts_of(model, optimizer))
    wide = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"model.0.weight is \[3, 4\] there and \[3, 5\] here"):
        load_parts(Shards(tmp_path / "shards").whole, wide, optimizer)


def test_steps_that_a_group_counts_go_along():
    """As timm's Adan does; from parts, from one process, and none where none were counted."""
    _, optimizer = stepped(0)
    assert count_of(optimizer) is None
    for group in optimizer.param_groups:
        group["step"] = 7
    for state in ({"optimizer_count": count_of(optimizer)}, {"optimizer": optimizer.state_dict()}):
        _, other = stepped(1)
        restore_count(other, state)
        assert [group["step"] for group in other.param_groups] == [7] * len(other.param_groups)
    _, other = stepped(1)
    restore_count(other, {"optimizer_count": None})
    assert count_of(other) is None
