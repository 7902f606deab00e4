"""Every recipe trains: two steps on pictures, and with `-m slow` an epoch on the digits."""

import json
import math

import pytest

import archs
from engine.config.recipe import recipe_names

QUICK = ("densenet40/paper", "shufflenet_g2/original", "squeezenet1_1/original", "mobilenetv1/original")
"""Of the default suite; the others are slow."""


def small(name: str) -> list:
    """Flags of a recipe's run at a size that a CPU bears."""
    network = name.partition("/")[0]
    size = {"inceptionv3_fullres": 12, "resnext29_2x64d": 16}.get(network, max(32, archs.lookup(network).minimum_size))
    return ["--recipe", name, "--image-size", size, "--precision", "fp32", "--log.no-plots", "--log.every", 1]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in recipe_names()]
)
def test_two_steps(run_here, photos, tmp_path, name):
    flags = [*small(name), "--data.root", photos, "--batch-size", 8, "--data.workers", 1, "--epochs", 1]
    done = run_here(*flags, *schedule(name), "--output", tmp_path / "run", base=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in rows if row["kind"] == "step")
    assert f"recipe {name}" in done.out
    assert f"recipe: {name}\n" in (tmp_path / "run" / "config.yaml").read_text()


def schedule(name: str) -> list:
    """What one epoch cannot mean of a recipe for ten."""
    growing = (
        ["--data.progressive-from", 16, "--data.progressive-stages", 2] if name.startswith("efficientnetv2") else []
    )
    return growing if not name.endswith("original") else []


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_an_epoch_on_the_digits(run_here, tmp_path, name):
    flags = [*small(name), "--data.name", "digits", "--epochs", 1, "--output", tmp_path / "run"]
    run_here(*flags, *schedule(name), base=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = [row for row in rows if row["kind"] == "epoch"]
    assert epoch["val_images"] == 359 and math.isfinite(epoch["val_loss"])
