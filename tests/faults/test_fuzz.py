"""Fuzz: 200 cases in the default tests, 2,000 in the slow ones. No traceback, no hang, one sentence that names it."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import archs
from engine.runs.weights_facts import WeightsFacts
from tests.faults import fuzz

SHARES = {"yaml": 45, "text": 20, "flag": 25, "file": 25, "metadata": 20, "rows": 15, "folders": 15}
SHARES |= {"facts": 15, "ranges": 15, "rates": 5}
"""Cases of each kind among 200."""
assert sum(SHARES.values()) == 200


def tried(kind: str, times: int) -> settings:
    return settings(
        max_examples=SHARES[kind] * times,
        deadline=None,
        derandomize=times == 1,  # the default tests try the same cases every time
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


amount = pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])


@amount
def test_every_field_by_yaml(tmp_path, times):
    @tried("yaml", times)
    @given(fuzz.names, fuzz.values)
    def check(name, value):
        fuzz.by_yaml(tmp_path, name, value)

    check()


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_each_field_with_odd_values(tmp_path, every):
    """What is drawn at random above may miss a field; here none is missed."""
    tried = [(name, value) for name in fuzz.NAMES for value in fuzz.ODD][::every]
    assert {name for name, _ in tried} == set(fuzz.NAMES)
    for name, value in tried:
        fuzz.by_yaml(tmp_path, name, value)


@amount
def test_any_text_as_yaml(tmp_path, times):
    @tried("text", times)
    @given(st.one_of(st.text(), st.text("[]{}:,&*!|>'\"%@`#-? \n\tab0", max_size=60)))
    def check(text):
        fuzz.by_text(tmp_path, text)

    check()


@amount
def test_every_field_by_flag(times):
    @tried("flag", times)
    @given(fuzz.names, st.one_of(fuzz.texts, fuzz.numbers.map(str)))
    def check(name, value):
        fuzz.by_flag(name, value)

    check()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run folder with one of everything, made by a run."""
    from tests.faults.trial import Bench

    return Bench(tmp_path_factory.mktemp("fuzzed")).whole


@amount
def test_any_harm_to_a_file_of_a_run(whole, tmp_path, times):
    @tried("file", times)
    @given(st.sampled_from(fuzz.FILES), st.sampled_from(fuzz.HARMS), st.floats(0, 1), st.binary(max_size=200))
    def check(name, what, place, noise):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        (run / "monitor.jsonl").touch()
        fuzz.harm(run, name, what, place, noise)
        fuzz.read_all(run)

    check()


@amount
def test_any_metadata(tmp_path, times):
    network = archs.build("convnet_bn", 2)
    facts = WeightsFacts("convnet_bn", ["a", "b"], {}, 32).as_metadata()

    @tried("metadata", times)
    @given(
        st.sampled_from([*facts, "preprocessing", "checksum"]),
        st.one_of(fuzz.texts, st.sampled_from(["[]", "{}", "3"])),
    )
    def check(name, text):
        fuzz.odd_metadata(tmp_path / "w.safetensors", network.state_dict(), facts | {name: text})

    check()
    assert torch.is_tensor(network.state_dict()[next(iter(network.state_dict()))])


@amount
def test_any_rows(tmp_path, times):
    (tmp_path / "config.yaml").write_text("seed: 0\n")

    @tried("rows", times)
    @given(st.lists(st.one_of(fuzz.ROWS, st.text(max_size=20)), max_size=8))
    def check(rows):
        fuzz.odd_rows(tmp_path, rows)

    check()


@amount
def test_any_data_folder(tmp_path, times):
    @tried("folders", times)
    @given(fuzz.ENTRIES)
    def check(entries):
        fuzz.odd_folders(tmp_path / "data", entries)

    check()


@amount
def test_any_description_of_a_run_that_is_reported(tmp_path, times):
    @tried("facts", times)
    @given(fuzz.TREES, st.dictionaries(st.sampled_from(fuzz.PLAN), fuzz.values))
    def check(config, plan):
        fuzz.odd_facts(tmp_path, config, plan)

    check()


@amount
def test_any_ranges_of_a_sweep(tmp_path, times):
    @tried("ranges", times)
    @given(st.one_of(fuzz.names, fuzz.values.filter(lambda one: not isinstance(one, list | dict))), fuzz.RANGES)
    def check(name, told):
        fuzz.odd_ranges(tmp_path, name, told)

    check()


@amount
def test_any_rates_to_find(times):
    @tried("rates", times)
    @given(st.one_of(fuzz.texts, st.lists(fuzz.numbers.map(str), max_size=4).map(":".join)))
    def check(text):
        fuzz.odd_rates(text)

    check()


def test_every_field_is_among_those_that_are_tried():
    """Whatever RunConfig gets next, its groups too, is drawn from without being named here."""
    from engine.config import RunConfig

    asked = {field.name for field in dataclasses.fields(RunConfig)} - {"config", "resume"}
    tried = {name.partition(".")[0] for name in fuzz.NAMES}
    assert tried == asked
    leaves = {f"augment.{field.name}" for field in dataclasses.fields(RunConfig().augment)}
    assert leaves <= set(fuzz.NAMES)
