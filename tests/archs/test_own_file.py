"""`FILE.py:FACTORY`: what a person's own file may do, and in which words its faults are told."""

from pathlib import Path

import pytest
import torch

import archs
from archs.own_file import RULE
from engine.config import ConfigError, DataConfig, ModelConfig, RunConfig
from engine.plan.memory.fake import on_meta
from engine.plan.request import builder
from engine.step.network import build_network

FILE = """from __future__ import annotations
import dataclasses, functools
import torchvision
from torch import nn, linspace
from beside_it import WIDTH

@dataclasses.dataclass
class Shape:
    width: int = WIDTH

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, Shape().width, 3), nn.Conv2d(Shape().width, 4, 3))
        self.logits = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.logits(self.body(images).mean(dim=(2, 3)))

class Named(Net):
    def forward(self, images):
        return {"logits": super().forward(images)}

class Flat(Net):
    def forward(self, images):
        return self.logits(images.flatten(1))

class Early(nn.Module):
    def __init__(self, num_classes):
        self.logits = nn.Linear(4, num_classes)

class Shares(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.shares = [share.item() for share in linspace(0, 0.5, 3)]

def net(num_classes): return Net(num_classes)
def free(**settings): return Net(settings["num_classes"])
def without(): return Net(10)
def needs(num_classes, width): return Net(num_classes)
def words(num_classes): return "no network"
def same_class(num_classes): return Net
def ten(num_classes): return Net(10)
def raises(num_classes):
    raise KeyError("two",
                   "lines")
def leaves(num_classes): raise SystemExit(3)
number = 3
least = lambda num_classes: Net(num_classes, "more")
part = functools.partial(torchvision.models.resnet18, weights="none_so")
def of_two(kind, num_classes): return Net(num_classes)
first = functools.partial(of_two, kind="a")
half = functools.partial(of_two)

class Waits(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.logits = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.logits(images.flatten(1))

class Convolved(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.logits = nn.Conv2d(3, num_classes, 1)

    def forward(self, images):
        return self.logits(images).mean(dim=(2, 3))

class Asks(Net):
    def forward(self, images):
        return super().forward(images * images.mean().item())
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The path of a file of networks; another lies beside it."""
    monkeypatch.setattr("sys.path", __import__("sys").path[:])
    (tmp_path / "beside_it.py").write_text("WIDTH = 8\n")
    (tmp_path / "nets.py").write_text(FILE)
    return tmp_path / "nets.py"


def line_of(text: str) -> int:
    return next(place for place, line in enumerate(FILE.splitlines(), 1) if line.startswith(text))


def asked(arch: str) -> RunConfig:
    return RunConfig(model=ModelConfig(arch=arch), data=DataConfig(image_size=16))


@pytest.mark.parametrize("factory", ["net", "Net", "free", "Shares", "first"])
def test_functions_and_classes_that_keep_the_rule(own, factory):
    """A class of its own may be a dataclass, what lies beside the file is imported, numbers are asked for at once."""
    config = asked(f"{own}:{factory}")
    assert build_network(config, 5)(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    state = torch.get_rng_state()
    planned = on_meta(builder(config, 5))
    assert all(tensor.is_meta for tensor in planned.parameters()) and planned.unit_names == ("body",)
    assert torch.equal(torch.get_rng_state(), state), "a plan drew from the run's own numbers"


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("without", "without() in line {} cannot be called: got an unexpected keyword argument 'num_classes'"),
        ("needs", "needs(num_classes, width) in line {} cannot be called: missing a required argument: 'width'"),
        ("nobody", "nets.py has no function nobody (it has Shape, Net, "),
        ("number", "nets.py has no function number (it has "),
        ("words", "words made a str, not a torch.nn.Module"),
        ("same_class", "same_class made the class Net, not a torch.nn.Module"),
        ("raises", "raises raised KeyError in line {}: ('two', 'lines')"),
        ("leaves", "leaves raised SystemExit in line {}: 3"),
        ("ten", "ten makes [2, 10] of 2 images, not logits [2, 5]"),
        ("Named", "Named makes a dict of images, not logits"),
        ("Early", "Early raised AttributeError in line {}: cannot assign module before Module.__init__() call"),
        ("least", "least raised TypeError in line {}: Net.__init__() takes 2 positional arguments but 3 were given"),
        ("part", "part in line {} raised KeyError in enum.py, line "),
        ("half", "half(kind, num_classes) in line {} cannot be called: missing a required argument: 'kind'"),
        ("Waits", "Waits in line {} made a network of lazy layers: logits.weight has no shape before the first batch"),
        ("Convolved", "Convolved has no torch.nn.Linear, and no part called fc, classifier, heads, head, that could"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_factory_that_breaks_the_rule_is_told_by_file_factory_line_and_rule(
    own, factory, told, relative, monkeypatch
):
    starts = {name: f"class {name}" for name in ("Early", "Waits")}
    starts |= {name: f"{name} =" for name in ("least", "part", "half")}
    further = {"Early": 2, "raises": 1}
    if relative:
        monkeypatch.chdir(own.parent)
        own = Path(own.name)
    if "{}" in told:
        line = line_of(starts.get(factory, f"def {factory}")) + further.get(factory, 0)
        told = told.replace("{}", str(line))
    name = f"{own}:{factory}"
    for build in (lambda: build_network(asked(name), 5), lambda: builder(asked(name), 5)):
        with pytest.raises(ConfigError) as caught:
            build()
        said = str(caught.value)
        assert said.startswith(name) and told in said and said.endswith(RULE) and "\n" not in said


def test_a_network_that_cannot_run_is_told_where_there_is_nothing_else_to_run_it_on(own, monkeypatch):
    name = f"{own}:Flat"
    line = line_of("class Flat") + 2
    with pytest.raises(ConfigError, match=rf"cannot run on images \[2, 3, 16, 16\]: RuntimeError in line {line}: "):
        build_network(asked(name), 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there it may be of kernels that a CPU has not
    assert archs.build(name, 5, image_size=16).unit_names == ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import os\nimport nothing_of_that_name\n", "ModuleNotFoundError in line 2: No module named 'nothing_of"),
        ("def net(num_classes:\n  return\n", "SyntaxError in line 1: "),
        ("import broken_beside\n", "SyntaxError in line 1: "),
        ("import sys\nsys.exit(4)\n", "SystemExit in line 2: 4"),
        ("1 / 0\n", "ZeroDivisionError in line 1: division by zero"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told(tmp_path, monkeypatch, content, told):
    monkeypatch.setattr("sys.path", __import__("sys").path[:])
    (tmp_path / "broken_beside.py").write_text("def (\n")
    (tmp_path / "broken.py").write_text(content)
    name = f"{tmp_path / 'broken.py'}:net"
    with pytest.raises(archs.UnknownArch) as caught:
        archs.build(name, 3)
    said = str(caught.value)
    assert said.startswith(f"{name}: {tmp_path / 'broken.py'} cannot be imported: {told}") and said.endswith(RULE)
    with pytest.raises(archs.UnknownArch, match=r"there is no file nowhere\.py"):
        archs.build("nowhere.py:net", 3)


@pytest.mark.parametrize("name", ["{}", "{}:", "{}:net.more"])
def test_a_file_without_its_function_is_told_with_those_it_has_and_nothing_is_run(tmp_path, name):
    path = tmp_path / "nets.py"
    path.write_text(FILE + "raise SystemExit(5)\n")
    shown = ", ".join(f"{path}:{one}" for one in ("Net", "Named", "Flat", "Early", "Shares"))
    told = f"name the function in it, {path}:FACTORY (such as {shown})"
    with pytest.raises(archs.UnknownArch) as caught:
        archs.lookup(name.format(path))
    said = str(caught.value)
    assert said.startswith(f"{name.format(path)}: {told}") and said.endswith(RULE)


def test_other_ways_to_write_it_are_told(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    Path("odd.py").write_text("def (\n")
    for name, told in {
        "nets:net": r"a file is named with its ending: nets\.py:net$",
        "nowhere.py": r"there is no file nowhere\.py; a network of one's own is FILE\.py:FACTORY",
        "odd.py": r"name the function in it, odd\.py:FACTORY; ",
        "nowhere:net": "no architecture is called 'nowhere:net'",
    }.items():
        with pytest.raises(archs.UnknownArch, match=told):
            archs.lookup(name)


def test_a_plan_that_cannot_be_made_is_told_by_name_operator_line_and_fallback(own, tmp_path, capsys):
    from engine.plan.command import run_plan
    from engine.plan.request import parse

    name = f"{own}:Asks"
    shape = ["--image-size", "16", "--batch-size", "4", "--output", str(tmp_path / "plan")]
    with pytest.raises(ConfigError) as caught:
        run_plan(parse(["--arch", name, *shape]), lambda planned: None)
    said, line = str(caught.value), line_of("class Asks") + 2
    assert said.startswith(f"{name} cannot be simulated: aten._local_scalar_dense.default failed on FakeTensors")
    assert f"in line {line}: " in said and "launch/train.py measures instead" in said and "\n" not in said
    assert not (tmp_path / "plan").exists()
