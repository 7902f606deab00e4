"""The run description: flags, YAML, checks, nearest names."""

import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import (
    ConfigError,
    DataConfig,
    OptimConfig,
    RunConfig,
    field_names,
    find_run,
    from_yaml,
    parse,
    to_yaml,
)
from engine.config.command_line import expand_short_flags
from engine.config.run_config import flags


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_common_knobs_are_top_level_flags():
    line = """
        --arch resnext --data.name digits --data.root x --epochs 3 --batch-size 64 --image-size 32 --lr 1e-2
        --optimizer sgd --precision bf16 --recompute block --compile --seed 7 --output runs/a
    """
    config = parse(shlex.split(line))
    assert (config.model.arch, config.model.compile) == ("resnext", "on")
    assert (config.data.name, config.data.root, config.data.image_size) == ("digits", Path("x"), 32)
    assert (config.optim.epochs, config.optim.batch_size) == (3, 64)
    assert (config.optim.lr, config.optim.optimizer) == (0.01, "sgd")
    assert (config.precision.precision, config.memory.recompute) == ("bf16", "block")
    assert (config.seed, config.log.output) == (7, Path("runs/a"))


def test_base_yaml_states_the_defaults(root):
    base, usual = from_yaml(root / "configs" / "base.yaml"), RunConfig()
    assert base.data.image_size == usual.data.side, "the file says the number, which pretrained weights do not change"
    assert replace(base, data=replace(base.data, image_size=0)) == usual


CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "kubernetes")
"""What a cluster reads is held by tests/engine/train/together/test_print_launch.py."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_reads(path):
    if path.parent.name == "accelerate":
        pytest.skip("accelerate's own format; tests/engine/step/test_wrap.py reads it")
    assert isinstance(from_yaml(path), RunConfig)


def test_flags_win_over_the_file(tmp_path):
    path = write(tmp_path, "optim: {lr: 0.5, epochs: 4}\nmodel: {arch: resnet18}\n")
    config = parse(["--config", str(path), "--lr", "0.25"])
    assert (config.optim.lr, config.optim.epochs, config.model.arch) == (0.25, 4, "resnet18")


@given(
    lr=st.floats(1e-9, 10),
    size=st.integers(8, 512),
    scale=st.none() | st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    root=st.none() | st.just(Path("some where/ünïcode")),
)
def test_yaml_round_trip(tmp_path_factory, lr, size, scale, root):
    config = RunConfig(data=DataConfig(image_size=size, crop_scale=scale, root=root), optim=OptimConfig(lr=lr))
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 1}", "unknown key optim.lrr; did you mean optim.lr"),
        ("lr: 1", "did you mean optim.lr"),
        ("optim: {epoch: 1}", "did you mean optim.epochs"),
        ("data: 4", "data is a group"),
        ("optim: {epochs: many}", "optim.epochs"),
        ("optim: {lr: -1}", "--lr must be above 0"),
        ("data: {crop_scale: [0.9, 0.2]}", "MIN <= MAX"),
        ("precision: {precision: fp8}", "precision.precision"),
        ("- 1", "expected fields and values"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_bad_yaml_is_refused_with_what_would_do(tmp_path, text, message):
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", r"\(")):
        from_yaml(write(tmp_path, text))


def test_missing_config_names_its_neighbours(tmp_path):
    write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"no such file; there is .*run\.yaml"):
        from_yaml(tmp_path / "rnu.yaml")


def test_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(["--batchsize", "4"])
    assert exit.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_value_out_of_range_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(["--epochs", "0"])
    assert exit.value.code == 2
    assert "--epochs must be at least 1" in capsys.readouterr().err


def test_short_flags():
    assert expand_short_flags(["--no-compile"]) == ["--compile", "off"]
    assert expand_short_flags(["--compile", "--lr", "1"]) == ["--compile", "on", "--lr", "1"]
    assert expand_short_flags(["--compile", "auto"]) == ["--compile", "auto"]
    assert expand_short_flags(["--resume", "--lr", "1"]) == ["--resume", "newest", "--lr", "1"]
    assert expand_short_flags(["--resume", "runs/a"]) == ["--resume", "runs/a"]


def test_resume_starts_from_the_runs_own_config(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "a"
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(RunConfig(optim=OptimConfig(lr=0.125))))
    monkeypatch.chdir(tmp_path)
    assert parse(["--resume", str(run)]).optim.lr == 0.125
    assert parse(["--resume"]).optim.lr == 0.125
    assert parse(["--output", str(run), "--resume"]).optim.lr == 0.125
    assert find_run(str(run / "checkpoints" / "step-00000003")) == run


def test_resume_auto_goes_on_or_starts(tmp_path, monkeypatch):
    """The same command begins a run and goes on with it, with a recipe too."""
    monkeypatch.chdir(tmp_path)
    command = ["--lr", "0.125", "--output", "run", "--resume", "auto"]
    assert parse(command).resume is None
    assert parse(["--recipe", "resnet18/paper", "--resume=auto"]).resume is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(RunConfig(optim=OptimConfig(lr=0.125))))
    again = parse(command)
    assert (again.resume, again.optim.lr) == ("auto", 0.125)
    assert parse(["--output", "run", "--resume", "auto"]).optim.lr == 0.125
    assert parse(["--recipe", "resnet18/paper", "--output", "run", "--resume", "auto"]).recipe == "resnet18/paper"


def test_resume_of_nothing_says_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run in"):
        parse(["--resume"])
    with pytest.raises(ConfigError, match=r"nowhere: no config\.yaml"):
        parse(["--resume", "nowhere"])


def test_every_field_is_documented(root):
    help_text = subprocess.run(
        [sys.executable, "launch/train.py", "--help"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    for name in field_names():
        assert f"{flags()[name]} " in help_text or f"{flags()[name]}," in help_text, name


def test_a_run_folder_of_an_earlier_version_is_whole(tmp_path):
    """Its file has fewer fields and no last line that counts them; cut anywhere it is refused all the same."""
    text = Path(__file__).with_name("before_marks.yaml").read_text()
    path = write(tmp_path, text)
    config = from_yaml(path, whole=True)
    assert config.model.arch == "resnet18" and config.data.mean is None
    lines = text.splitlines(keepends=True)
    for kept in range(1, len(lines)):
        path.write_text("".join(lines[:kept]))
        with pytest.raises(ConfigError, match=r"was cut or edited|is a group of fields"):
            from_yaml(path, whole=True)
    path.write_text(text[:-1])
    with pytest.raises(ConfigError, match=r"was cut or edited|is a group of fields"):
        from_yaml(path, whole=True)


def test_help_is_quick(root):
    """Beside the imports that it cannot do without, which a slower machine stretches alike: 2.5 times them. In
    processor time, the least of three, in turns."""
    commands = (["launch/train.py", "--help"], ["-c", "import numpy, PIL.Image, tyro, yaml"])
    times: list[list[float]] = [[], []]
    for _ in range(3):
        for command, taken in zip(commands, times, strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], cwd=root, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times[0]) < 6 * min(times[1]), times


def test_help_does_not_import_torch(root):
    code = "import runpy, sys; sys.argv = ['train', '--help']\n"
    code += "try: runpy.run_path('launch/train.py', run_name='__main__')\n"
    code += "except SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True).returncode == 0
