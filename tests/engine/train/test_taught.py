"""Runs that learn from a run: with logits that are computed and with those that were kept, and after a resume."""

import json

import pytest
from safetensors.torch import load_file

FLAGS = ["--epochs", 2, "--log.every", 1, "--augment.mixup", 0.4, "--seed", 3]


def losses(folder) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]


@pytest.fixture
def teacher(run_here, tmp_path):
    run_here("--output", tmp_path / "teacher", "--lr", 0.01)
    return tmp_path / "teacher"


@pytest.mark.parametrize("mode", ["logits", "hard"])
def test_kept_logits_give_bit_equal_losses(run_here, teacher, tmp_path, mode):
    flags = [*FLAGS, "--distill", teacher, "--distill.mode", mode]
    said = run_here(*flags, "--output", tmp_path / "computed").out
    assert f"teacher {teacher}: " in said and "logits kept in" in said
    run_here(*flags, "--output", tmp_path / "kept")
    run_here(*flags, "--output", tmp_path / "off", "--distill.cache", "off")
    run_here(*FLAGS, "--output", tmp_path / "plain")
    computed, kept, off, plain = (losses(tmp_path / name) for name in ("computed", "kept", "off", "plain"))
    assert computed == kept == off and len(computed) == 8
    assert computed != plain
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("computed", "kept")]
    assert all((one == weights[1][name]).all() for name, one in weights[0].items())


def test_it_goes_on_after_a_stop_bit_for_bit(run_here, teacher, tmp_path):
    flags = [*FLAGS, "--distill", teacher]
    run_here(*flags, "--output", tmp_path / "whole", "--log.keep-checkpoints", 0)
    checkpoint = sorted((tmp_path / "whole" / "checkpoints").iterdir())[0]
    before = losses(tmp_path / "whole")
    run_here("--resume", checkpoint, base=False)
    assert losses(tmp_path / "whole")[-4:] == before[-4:]


def test_a_teacher_with_other_classes_is_refused_before_anything_is_built(run_here, teacher, photos, tmp_path):
    for split in ("train", "val"):
        (photos / split / "dog").rename(photos / split / "wolf")
    told = run_here(*FLAGS, "--distill", teacher, "--output", tmp_path / "other", code=2).err
    assert "other classes: the teacher knows 2 (cat, dog), the data has 2 (cat, wolf)" in told
    assert not (tmp_path / "other").exists()
