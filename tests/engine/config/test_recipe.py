"""Recipes by name: each reads, says where it is from, and a name that is none is told its neighbours."""

import pytest
import yaml

import archs
from engine.config import ConfigError, RunConfig, changed_yaml, from_yaml, parse, to_yaml
from engine.config.recipe import recipe_file, recipe_names
from engine.report.arch_table import LEARNING_REPOSITORY

ORIGINS = ("paper", "original", "best", "sam", "a1", "a2", "a3", "deit", "progressive")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_short_and_says_where_it_is_from(name):
    network, _, origin = name.partition("/")
    text = recipe_file(name).read_text()
    assert origin in ORIGINS
    assert archs.lookup(network).name == network == from_yaml(recipe_file(name)).model.arch
    assert len(text.splitlines()) <= 40 and text.startswith("# ")
    head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert "arXiv:" in head or "Krizhevsky" in head or "learning repository" in head
    assert all(len(line) <= 120 for line in text.splitlines())


def test_every_row_of_the_learning_repository_has_its_recipes():
    names = set(recipe_names())
    rows = {ours for _, _, ours, _ in LEARNING_REPOSITORY}
    lacking = {f"{ours}/{origin}" for ours in rows for origin in ("paper", "original")} - names
    assert not lacking
    assert {"resnet18/sam", "resnet50/a1", "resnet50/a2", "resnet50/a3", "vit_s16/deit"} <= names
    assert "efficientnetv2_s/progressive" in names


def test_flags_win_over_a_recipe_and_the_run_keeps_its_name():
    config = parse(["--recipe", "resnet18/paper", "--epochs", "3", "--optim.milestones", "1", "2"])
    assert config.model.arch == "resnet18" and config.optim.optimizer == "sgd"
    assert (config.optim.epochs, config.optim.milestones, config.recipe) == (3, (1.0, 2.0), "resnet18/paper")


def test_the_runs_own_file_is_enough(tmp_path):
    config = parse(["--recipe", "resnet18/paper", "--lr", "0.3"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(path, whole=True) == config


def test_a_file_may_stand_on_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: resnet18/paper\noptim: {lr: 0.3}\ndata: {image_size: 64}\n")
    config, below = from_yaml(path), from_yaml(recipe_file("resnet18/paper"))
    assert (config.optim.lr, config.data.image_size) == (0.3, 64)
    assert (config.optim.milestones, config.model.arch) == (below.optim.milestones, "resnet18")


def test_what_differs_is_printed_and_reads_back(tmp_path):
    config = parse(["--recipe", "resnet18/paper"])
    path = tmp_path / "shown.yaml"
    path.write_text(changed_yaml(config))
    assert from_yaml(path) == from_yaml(recipe_file("resnet18/paper"))
    assert changed_yaml(RunConfig()) == yaml.safe_dump({})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "resnet18/papr"], "did you mean resnet18/best or .*resnet18/paper"),
        (["--recipe", "resnet19/paper"], "did you mean .*resnet18/paper"),
        (["--recipe", "../base"], "no such recipe"),
        (["--recipe", "resnet18/paper", "--config", "configs/base.yaml"], "recipe: NAME"),
        (["--recipe", "resnet18/paper", "--resume", "runs/x"], "leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        parse(arguments)


def test_a_file_on_a_recipe_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: resnet18/papr\n")
    with pytest.raises(ConfigError, match="did you mean"):
        from_yaml(path)
