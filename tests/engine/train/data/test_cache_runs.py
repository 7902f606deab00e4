"""Runs on images that were decoded once: the choice is part of the run, a stop changes nothing, little room is told."""

import pytest
import yaml


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_run_goes_on_exactly(run_here, resume, weights, tmp_path, where):
    done = run_here(
        "--data.cache", where, "--epochs", "2", "--log.checkpoint-steps", "1", "--log.keep-checkpoints", "0"
    )
    assert "cache: 24 images decoded" in done.out and "as their files are" in done.out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["cache"] == where
    whole = weights()
    resume("--resume", sorted((tmp_path / "run" / "checkpoints").iterdir())[1])
    assert weights() == whole


def test_what_auto_came_to_is_kept(run_here, resume, tmp_path):
    run_here("--data.cache", "auto")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["cache"] in (
        "ram",
        "disk",
    )  # what an earlier run left counts
    assert "-> off" in resume("--data.cache", "off", code=2).err


def test_too_little_memory_is_a_sentence(run_here, tmp_path, monkeypatch):
    from engine.data.decoded import choice

    monkeypatch.setattr(choice, "HOST_SHARE", 0.0)
    done = run_here("--data.cache", "ram", code=2)
    assert "--data.cache ram: the decoded images need" in done.err and not (tmp_path / "run").exists()
