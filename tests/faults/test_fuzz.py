"""Fuzz: 200 cases in the default tests, 2,000 in the slow ones. No traceback, no hang, one sentence that names it."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import archs
from engine.runs.weights_facts import WeightsFacts
from tests.faults import fuzz

SHARES = {"yaml": 60, "text": 30, "flag": 30, "file": 30, "metadata": 20, "rows": 15, "folders": 15}
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
