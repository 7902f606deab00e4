"""What checkpoints, ranks and launchers were measured to cost: within their limits, and told when they are not."""

import os
from types import SimpleNamespace

import pytest

from engine.bench import ranks_cost
from engine.bench.ranks_cost import ROUNDS, SETTINGS, beyond, checkpoint_cost, launchers, main, rate_of

TINY = {"arch": "convnet_bn", "batch_size": 2, "image_size": 32, "precision": "fp32", "steps": 2}


@pytest.fixture
def rows(profile_rows):
    """Rows of all machines' files."""
    return profile_rows("ranks")


def test_what_was_measured_is_within_its_limits(rows):
    assert {name for name, _ in rows} == set(SETTINGS)
    for name, row in rows:
        assert beyond(name, row["figures"]) is None
        assert row["identity"]["settings"] == SETTINGS[name] | {"rounds": ROUNDS[name]}, name


def test_a_limit_that_is_broken_is_told():
    assert "takes 1.20%" in beyond("checkpoint", {"share_of_a_minute": 0.012})
    assert "1.60 × one" in beyond("two processes", {"ratio": {"two processes / one": {"median": 1.6}}})
    added = {"accelerate launch": {"median": 2.0}, "torchrun": {"median": 5.5}}
    assert "torchrun adds 5.5 s" in beyond("launchers", {"added": added})


def test_a_checkpoint_s_cost_is_that_of_steps_with_it_less_those_without(monkeypatch):
    """By a clock that only training (1 s a block) and saving (0.25 s) move: 0.25 s, all of which it stood."""
    clock = [0.0]

    def pass_by(seconds, work):
        def run(*arguments):
            clock[0] += seconds
            return work(*arguments)

        return run

    from engine.train.trainer import Trainer

    monkeypatch.setattr(ranks_cost, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Trainer, "save", pass_by(0.25, Trainer.save))
    monkeypatch.setattr(ranks_cost, "epoch_rate", lambda trainer: pass_by(1.0, lambda: None))
    found = checkpoint_cost(TINY, 2)
    assert found["rounds"] == [0.25, 0.25] and found["stood_seconds"] == 0.25 and found["block_seconds"] == 1.25
    assert found["share_of_a_minute"] == pytest.approx(0.25 / 60, abs=1e-5)
    assert found["checkpoint_bytes"] > 1e6  # 0.39 M parameters in fp32


def test_what_launchers_add_is_over_plain_python(monkeypatch):
    taken = {(): 4.0, ranks_cost.LAUNCHERS["accelerate launch"]: 5.5, ranks_cost.LAUNCHERS["torchrun"]: 5.0}
    monkeypatch.setattr(ranks_cost, "first_step_seconds", lambda arch, size, launcher: taken[launcher])
    found = launchers(SETTINGS["launchers"], 3)
    assert {name: one["median"] for name, one in found["added"].items()} == {"accelerate launch": 1.5, "torchrun": 1.0}


def test_a_row_that_is_none_of_them_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["launcher"])
    assert ended.value.code == 2 and "launcher is none of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_and_one_that_fails_is_told():
    cores = sorted(os.sched_getaffinity(0))
    settings = SETTINGS["two processes"] | {"image_size": 32, "batch_size": 40}
    small = settings | {"flags": [*settings["flags"], "--data.limit", "400"]}
    assert rate_of(2, [cores[0], cores[-1]], small) > 0
    with pytest.raises(RuntimeError, match="resnet19"):
        rate_of(1, cores, small | {"arch": "resnet19"})
