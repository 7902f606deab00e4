"""Checkpoints that a thread writes: copies that training cannot change, and errors that reach whoever waits."""

import threading

import pytest
import torch

from engine.recovery.background import Background, HostCopy
from tests.waiting import PATIENCE


def test_a_copy_is_not_changed_by_what_comes_after():
    weight = torch.arange(12.0).view(3, 4).t()
    copies = HostCopy()
    copied = copies.of({"model": {"weight": weight}, "steps": [torch.tensor(3), "text"], "none": None})
    weight += 1
    assert copied["model"]["weight"].tolist() == (weight - 1).tolist()
    assert copied["model"]["weight"].stride() == weight.stride()
    assert (copied["steps"], copied["none"]) == ([torch.tensor(3), "text"], None)


def test_the_memory_of_one_copy_is_used_for_the_next():
    copies, weight = HostCopy(), torch.zeros(5)
    first = copies.of({"weight": weight})["weight"]
    assert copies.of({"weight": weight + 1})["weight"] is first
    assert copies.of({"weight": torch.zeros(6)})["weight"].shape == (6,)


def test_work_goes_on_beside_and_its_error_is_told_once():
    background, go = Background(), threading.Event()

    def work() -> None:
        assert go.wait(PATIENCE)
        raise OSError("full")

    background.start(work)
    assert background.busy
    background.wait(0.01)
    assert background.busy
    go.set()
    with pytest.raises(OSError, match="full"):
        background.wait()
    background.wait()
    assert not background.busy
