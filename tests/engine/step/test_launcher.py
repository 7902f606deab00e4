"""Launchers that say half of it, and accelerate configurations that want something else than the run."""

import pytest

from engine.config import ConfigError
from engine.step.launcher import complete_local_rank, overrule, refuse_foreign, refuse_odd_ranks, say_unused

HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", **HERE},
        {"RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_what_makes_sense_is_taken(environment):
    refuse_odd_ranks(environment)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "1"}, "RANK=1 and no WORLD_SIZE"),
        ({"WORLD_SIZE": "2", **HERE}, "no RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", **HERE}, "RANK is 2, of WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", **HERE, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"RANK": "0", "WORLD_SIZE": "2", **HERE, "MASTER_PORT": "99999"}, "from 1 to 65535"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK is ''"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
    ],
)
def test_what_makes_none_is_refused(environment, words):
    with pytest.raises(ConfigError, match=words):
        refuse_odd_ranks(environment)


@pytest.mark.parametrize(
    ("more", "devices", "local"),
    [
        ({}, 0, "0"),
        ({}, 1, "0"),
        ({}, 4, "3"),
        ({"SLURM_LOCALID": "1"}, 4, "1"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 4, "2"),
        ({"LOCAL_RANK": "5"}, 4, "5"),
    ],
)
def test_the_place_on_a_machine_is_derived(more, devices, local):
    environment = {"RANK": "3", "WORLD_SIZE": "8", **HERE, **more}
    complete_local_rank(devices, environment)
    assert environment["LOCAL_RANK"] == local


def test_a_single_process_gets_none():
    environment: dict[str, str] = {}
    complete_local_rank(1, environment)
    assert environment == {}


def test_ours_wins_over_a_persons_own_configuration(caplog):
    caplog.set_level("INFO", "hcr")
    environment = {
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_DYNAMO_MODE": "x",
        "ACCELERATE_MIXED_PRECISION": "fp16",
    }
    overrule("bf16", environment)
    assert environment == {"ACCELERATE_MIXED_PRECISION": "fp16"}
    assert "INDUCTOR" in caplog.text and "--compile decides" in caplog.text
    assert "fp16" in caplog.text and "--precision decides: bf16" in caplog.text


def test_what_agrees_is_not_mentioned(caplog):
    caplog.set_level("INFO", "hcr")
    for mixed in ("no", "bf16"):
        overrule("bf16", {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_MIXED_PRECISION": mixed})
    assert not caplog.text


def test_what_is_not_here_is_refused():
    with pytest.raises(ConfigError, match="ACCELERATE_USE_MEGATRON_LM"):
        refuse_foreign({"ACCELERATE_USE_MEGATRON_LM": "true"})


def test_two_ways_of_sharding_are_refused():
    """accelerate would take DeepSpeed, without a word."""
    with pytest.raises(ConfigError, match="both DeepSpeed and FSDP"):
        refuse_foreign({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true"})


@pytest.mark.parametrize("text", ["{not json", "[]", "\xff"])
def test_a_deepspeed_configuration_that_is_none_is_told_by_its_path(monkeypatch, tmp_path, text):
    from engine.step.wrap import Launch

    path = tmp_path / "zero.json"
    path.write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match=r"DeepSpeed's configuration .*zero.json is no "):
        Launch.detect()


def test_names_stay_the_networks_own_under_a_dynamo_backend(reset_accelerator, monkeypatch):
    """W4: accelerate would compile, and write every weight under `_orig_mod.`."""
    import torch

    from engine.config import OptimConfig, RunConfig
    from engine.step.plan import Hardware, make_plan
    from engine.step.wrap import Launch, build_accelerator, wrap

    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    model = torch.nn.Linear(2, 2)
    plan = make_plan(RunConfig(), model, Hardware("cpu", "CPU"))
    accelerator = build_accelerator(plan, Launch(0, 0, 1, None), OptimConfig())
    wrapped, _ = wrap(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, accelerator)
    assert set(wrapped.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, "2 of this machine's 4 GPUs train; --num_processes 8 takes"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "1 of this machine's 4 GPUs train; --num_processes 4 takes all"),
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, ""),
        ({}, ""),
    ],
)
def test_gpus_that_a_configuration_leaves_idle_are_said(caplog, environment, said):
    """configs/accelerate has a number of processes, as it must; without a launcher one is what is meant."""
    with caplog.at_level("INFO", logger="hcr"):
        say_unused(4, environment)
    assert said in caplog.text and bool(caplog.text) == bool(said)
