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
    clock = [1000.0]  # time passes by sleeping only, however busy the machine is
    sleep = lambda seconds: clock.__setitem__(0, clock[0] + seconds)  # noqa: E731
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    return given


def test_a_run_that_starts_again_waits_for_what_its_process_held(readings):
    context = device_of("a GPU", (8, 0)).context
    readings += [10, 40, 70, 70, 90]
    assert budget.free_memory(settle=True) == 70 + context
    readings[:] = [10, 40, 70]
    assert budget.free_memory() == 10 + context
    readings[:] = [80, 60]  # somebody else took of it
    assert budget.free_memory(settle=True) == 60 + context


def test_memory_that_grows_on_and_on_is_not_waited_for_for_ever(readings):
    readings += list(range(1000))
    looks = budget.PATIENCE / budget.PAUSE
    assert budget.free_memory(settle=True) == looks + device_of("a GPU", (8, 0)).context
