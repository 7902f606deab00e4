"""The cap on cuDNN's workspaces is the plan's, also after another plan's; a person's own stays."""

import logging

import pytest

from engine.step.device_memory import workspaces
from engine.step.device_memory.workspaces import cap_workspaces

MIB = 1 << 20


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(workspaces, "_caps", [])
    caplog.set_level(logging.INFO, logger="hcr")
    return caplog


def test_a_run_that_starts_again_has_its_own_cap(told):
    environment: dict[str, str] = {}
    cap_workspaces(512 * MIB, environment)
    assert environment["CUDNN_CONV_WSCAP_DBG"] == "512"
    workspaces._caps.clear()  # another process in the same place, with the same environment
    cap_workspaces(256 * MIB, environment)
    assert environment["CUDNN_CONV_WSCAP_DBG"] == "256" and not told.records


def test_a_second_cap_in_one_process_is_said(told):
    environment: dict[str, str] = {}
    cap_workspaces(512 * MIB, environment)
    cap_workspaces(512 * MIB, environment)
    assert not told.records
    cap_workspaces(256 * MIB, environment)
    assert environment["CUDNN_CONV_WSCAP_DBG"] == "256" and "now 256 MiB, which cuDNN may not see" in told.text


def test_a_persons_own_stays(told):
    environment = {"CUDNN_CONV_WSCAP_DBG": "64"}
    cap_workspaces(512 * MIB, environment)
    assert environment == {"CUDNN_CONV_WSCAP_DBG": "64"} and "64 is kept; the plan counts with 512 MiB" in told.text


def test_no_cap_changes_nothing(told):
    environment: dict[str, str] = {}
    cap_workspaces(0, environment)
    assert not environment
