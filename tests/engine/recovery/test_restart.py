"""F7: where torchrun starts a run anew it goes on with its own folder, named or not; nothing else is taken for it."""

import os
from dataclasses import replace

import pytest

from engine.config import ConfigError, LogConfig, OptimConfig, RunConfig
from engine.recovery.restart import after_restart
from engine.runs.owner import Ownership
from engine.runs.runfolder import RunFolder

CONFIG = RunConfig(optim=OptimConfig(lr=0.5))


@pytest.fixture
def restarted(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


def test_a_first_start_is_none(monkeypatch, tmp_path):
    config = replace(CONFIG, log=LogConfig(output=tmp_path / "run"))
    RunFolder.create(config, "resnet18", "digits").close()
    for count in (None, "0", "", "x"):
        monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
        if count is not None:
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert after_restart(config) is config


@pytest.mark.parametrize("resume", [None, "auto", "checkpoint"])
def test_a_named_folder_goes_on(restarted, tmp_path, resume):
    """Also where it was resumed before: from its newest checkpoint then, not from the one that was named."""
    config = replace(CONFIG, log=LogConfig(output=tmp_path / "run"))
    assert after_restart(config) is config  # killed before there was a folder
    RunFolder.create(config, "resnet18", "digits").close()
    named = str(tmp_path / "run" / "checkpoints" / "step-00000001") if resume == "checkpoint" else resume
    found = after_restart(replace(config, resume=named))
    assert found.resume == str(tmp_path / "run") and found.optim.lr == 0.5


def test_an_unnamed_folder_is_found_by_its_launcher(restarted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(CONFIG, "resnet18", "digits")
    folder.close()
    assert after_restart(CONFIG).resume == str(folder.path)
    monkeypatch.setattr(os, "getppid", lambda: 4)
    assert after_restart(CONFIG) is CONFIG  # another launcher's


def test_a_folder_that_no_run_owned_is_left_alone(restarted, tmp_path):
    config = replace(CONFIG, log=LogConfig(output=tmp_path))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert after_restart(config) is config
    Ownership(tmp_path).release()
    (tmp_path / "config.yaml").write_text("seed: ")
    with pytest.raises(ConfigError, match="cut"):
        after_restart(config)
