"""Ranges in a YAML file: read, drawn, and refused with file and line before anything runs."""

import pytest

from engine.config import ConfigError, RunConfig, parse
from engine.train.sweep.command import parse as parse_sweep
from engine.train.sweep.space import Range, read_space, with_fields


@pytest.fixture
def read(tmp_path):
    """read(text): the ranges of a file with it."""

    def made(text: str, base: RunConfig | None = None):
        path = tmp_path / "ranges.yaml"
        path.write_text(text)
        return read_space(path, base or RunConfig())

    return made


def test_every_kind_of_range(read):
    space = read(
        "# rates first\n"
        "optim.lr: {log: [1e-4, 1e-1]}\n"
        "optim.label_smoothing: {uniform: [0, 0.2]}\n"
        "optim.batch_size: {int: [16, 64]}\n"
        "optim.optimizer: {choice: [sgd, adamw]}\n"
    )
    assert space["optim.lr"] == Range("log", (1e-4, 0.1), 2)
    assert space["optim.label_smoothing"] == Range("uniform", (0.0, 0.2), 3)
    assert space["optim.batch_size"] == Range("int", (16, 64), 4)
    assert space["optim.optimizer"] == Range("choice", ("sgd", "adamw"), 5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim.lrr: {log: [1e-4, 1]}", r"ranges.yaml:1: unknown field optim.lrr; did you mean optim.lr"),
        ("\noptim.momentum: {uniform: [0.5, 1.5]}", r"ranges.yaml:2: optim.momentum cannot be 1.5: .*\[0, 1\)"),
        ("optim.optimizer: {choice: [sgd, sgdd]}", r"ranges.yaml:1: optim.optimizer cannot be sgdd"),
        ("optim.batch_size: {int: [0, 8]}", r"cannot be 0: .*at least 1"),
        ("optim.batch_size: {int: [1.5, 8]}", "whole numbers"),
        ("optim.batch_size: {uniform: [1, 8]}\noptim.lr: 3", r"ranges.yaml:2: optim.lr takes one of"),
        ("optim.lr: {log: [0, 1]}", "begins above 0"),
        ("optim.lr: {log: [1, 0.1]}", "1 is not below 0.1"),
        ("optim.lr: {log: [a, b]}", "takes one of"),
        ("optim.lr: {log: [1, 2, 3]}", "takes one of"),
        ("optim.lr: {grid: [1, 2]}", "takes one of"),
        ("optim.lr: {choice: []}", "takes one of"),
        ("optim.lr: {choice: [[1]]}", "a choice is"),
        ("seed: {int: [0, 9]}", "seed is the sweep's own"),
        ("null: {log: [1, 2]}", "None is no field"),
        ("on: {log: [1, 2]}", "True is no field"),
        ("1: {log: [1, 2]}", "1 is no field"),
        ("<<: {a: 1}", "'a' is no field"),
        ("optim.lr: {log: [1, 2]}\noptim.lr: {log: [1, 3]}", "optim.lr stands twice, in lines 1 and 2"),
        ("optim.batch_size: {uniform: [4, 8]}", r"optim.batch_size cannot be 5.5.*valid integer"),
        ("", "no range in it"),
        ("[1, 2]", "expected fields and values"),
    ],
)
def test_what_cannot_be_meant_is_refused(read, text, told):
    with pytest.raises(ConfigError, match=told):
        read(text)


def test_ends_are_judged_beside_the_fields_of_the_command_line(read):
    text = "optim.min_lr: {log: [1e-6, 1e-2]}"
    assert read(text, parse(["--lr", "0.1"]))
    with pytest.raises(ConfigError, match=r"cannot be 0.01: .*--optim.min-lr must be in \[0, --lr\)"):
        read(text, parse(["--lr", "0.001"]))


def test_fields_by_their_dotted_names():
    config = with_fields(RunConfig(), {"optim.lr": 0.5, "data.folds": 5, "seed": 3})
    assert (config.optim.lr, config.data.folds, config.seed) == (0.5, 5, 3)
    assert with_fields(RunConfig(), {}) == RunConfig()


def test_other_flags_are_the_trainings(tmp_path):
    path = tmp_path / "ranges.yaml"
    path.write_text("optim.lr: {log: [1e-4, 1e-1]}\n")
    asked = parse_sweep([str(path), "--trials", "3", "--arch", "resnet18", "--epochs", "2", "--output", "runs/s"])
    assert (asked.trials, asked.folds, str(asked.folder)) == (3, 0, "runs/s")
    assert (asked.base.model.arch, asked.base.optim.epochs, asked.base.log.output) == ("resnet18", 2, None)
    assert parse_sweep(["--folds", "5", "--arch", "resnet18"]).trials == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "a YAML of ranges, or --folds"),
        (["--folds", "1"], "--data.folds must be 0"),
        (["--folds", "5", "--trials", "4"], "would repeat one run"),
        (["--folds", "5", "--trials", "0"], "at least 1"),
        (["nowhere.yaml"], "no such file"),
        (["--folds", "5", "--resume", "runs/x"], "no config.yaml there"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        parse_sweep(arguments)
    assert not list(tmp_path.iterdir())
