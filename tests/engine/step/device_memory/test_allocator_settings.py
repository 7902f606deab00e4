"""Expandable segments are chosen where the person chose nothing."""

import pytest

from engine.step.device_memory import allocator_settings
from engine.step.device_memory.allocator_settings import CHOSEN, VARIABLES, choose_expandable, expandable


@pytest.fixture(autouse=True)
def able(monkeypatch):
    monkeypatch.setattr(allocator_settings, "_cards_can", lambda: True)
    monkeypatch.setattr(allocator_settings, "_cuda_started", lambda: False)


def test_nothing_was_chosen():
    environment = {}
    assert expandable(environment) and not environment
    assert choose_expandable(environment) and environment == {"PYTORCH_ALLOC_CONF": CHOSEN}


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize(
    ("given", "expands"),
    [
        ("", False),
        ("max_split_size_mb:128", False),
        ("expandable_segments:False", False),
        ("max_split_size_mb:128, expandable_segments : true", True),
    ],
)
def test_what_was_chosen_is_left_alone(name, given, expands):
    environment = {name: given}
    assert choose_expandable(environment) == expands and environment == {name: given}


def test_the_first_variable_counts():
    assert not expandable({VARIABLES[0]: "", VARIABLES[1]: CHOSEN})


@pytest.mark.parametrize(("name", "answer"), [("_cards_can", False), ("_cuda_started", True)])
def test_a_card_without_virtual_memory_or_one_in_use_is_left_alone(name, answer, monkeypatch):
    monkeypatch.setattr(allocator_settings, name, lambda: answer)
    environment = {}
    assert not choose_expandable(environment) and not environment


def test_no_driver_plans_for_a_card_to_come(monkeypatch):
    monkeypatch.undo()
    assert allocator_settings._cards_can("libnosuchcuda.so.1")
