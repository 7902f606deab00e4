"""What every network's training on the digits left under profiles/: of today's settings, and as good as it must be."""

import json
import re

import pytest

from engine.bench.learn import GOAL, accuracy, cost, flags
from engine.report.arch_table import published

FOUND = "profiles/*/learn.json"


@pytest.fixture
def rows(root):
    """Rows of all machines' files by network."""
    files = sorted(root.glob(FOUND))
    assert files, f"no {FOUND}"
    return [(name, row) for file in files for name, row in json.loads(file.read_text())["rows"].items()]


def test_rows_are_of_the_settings_that_a_new_run_would_have(rows):
    for name, row in rows:
        assert row["identity"]["settings"]["flags"] == flags(name), name


def test_rows_reach_the_goal(rows):
    for name, row in rows:
        assert GOAL <= accuracy(row) <= 1, name
        assert row["figures"]["val_images"] == 359, "the whole test split"


def test_the_readme_counts_them(rows, root):
    line = r"digits, (\d+) of the (\d+) networks(?: so far)? \| (\d+\.\d) % and more"
    readme = (root / "README.md").read_text()
    (told,) = re.findall(line, readme)
    lowest = min(accuracy(row) for _, row in rows)
    count, every = len({name for name, _ in rows}), len(published(readme))
    assert told == (str(count), str(every), f"{int(lowest * 1000) / 10:.1f}")


def test_the_cheapest_come_first():
    assert cost("mobilenetv1_025") < cost("resnet18") < cost("vgg19")


def test_later_settings_win():
    """vgg19 has its own size, and the precision of all VGGs."""
    told = flags("vgg19")
    assert told[told.index("--image-size") + 1] == "64" and told[told.index("--precision") + 1] == "bf16"
    assert flags("resnet18") == ["--arch", "resnet18", "--config", "configs/digits.yaml"]
