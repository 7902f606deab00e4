"""How much of a GPU there is to plan for: right behind a process that held it, too."""

from types import SimpleNamespace

import pytest
import torch

from engine.plan import budget
from engine.plan.memory.card import device_of


@pytest.fixture
def readings(monkeypatch):
    """What the GPU says is free, one look after the other; the last for good."""
    given = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (given.pop(0) if len(given) > 1 else given[0], 100))
    card = SimpleNamespace(name="a GPU", major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(budget, "PAUSE", 0.0)
    return given


def test_a_run_that_starts_again_waits_for_what_its_process_held(readings):
    context = device_of("a GPU", (8, 0)).context
    readings += [10, 40, 70, 70, 90]
    assert budget.free_memory(settle=True) == 70 + context
    readings[:] = [10, 40, 70]
    assert budget.free_memory() == 10 + context
    readings[:] = [80, 60]  # somebody else took of it
    assert budget.free_memory(settle=True) == 60 + context


def test_memory_that_grows_on_and_on_is_not_waited_for_for_ever(readings, monkeypatch):
    monkeypatch.setattr(budget, "PATIENCE", -1.0)
    readings += list(range(1000))
    assert budget.free_memory(settle=True) == device_of("a GPU", (8, 0)).context
