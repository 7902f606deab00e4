"""The installed command and the Python names: the same code as the scripts, and nothing imported before it is used."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import engine
from engine.config import ConfigError, MemoryConfig, ModelConfig, OptimConfig, RunConfig
from launch import hcr


def test_every_script_is_a_command():
    scripts = {path.stem for path in Path(hcr.__file__).parent.glob("*.py")} - {"__init__", "hcr"}
    assert set(hcr.COMMANDS) == scripts
    setup = Path(hcr.__file__).parents[1] / "setup.py"
    assert "hcr = launch.hcr:main" in setup.read_text()


def test_a_command_is_its_script(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hcr", "report", "no-such-run"])
    assert hcr.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert sys.argv == ["hcr report", "no-such-run"]


@pytest.mark.parametrize(("argument", "code"), [([], 0), (["--help"], 0), (["trian"], 2)])
def test_without_a_command_they_are_listed(monkeypatch, capsys, argument, code):
    monkeypatch.setattr("sys.argv", ["hcr", *argument])
    assert hcr.main() == code
    said = "".join(capsys.readouterr())
    assert all(command in said for command in hcr.COMMANDS)


def test_importing_engine_imports_itself_alone(root):
    """Measured by what is loaded, not by a clock: with one module it is a millisecond or two."""
    code = "import sys; before = set(sys.modules); import engine; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == ["engine"]


def test_every_public_name_is_there():
    for name in engine.__all__:
        assert callable(getattr(engine, name)), name
        assert getattr(engine, name).__doc__
    with pytest.raises(AttributeError, match="engine has no tain"):
        _ = engine.tain


def test_a_plan_in_python():
    config = RunConfig(
        model=ModelConfig(arch="squeezenet1_1"),
        optim=OptimConfig(batch_size=8),
        memory=MemoryConfig(recompute="none", gpu_memory="8GiB"),
    )
    planned = engine.plan_for(config, num_classes=10)
    assert planned.plan.global_batch_size == 8 and planned.plan.predicted_peak_bytes > 0
    with pytest.raises(ConfigError, match="has no plan in"):
        engine.plan_for(replace(config, memory=MemoryConfig(recompute="none", gpu_memory="600MiB")), num_classes=10)
