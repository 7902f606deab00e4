"""launch/data.py as a person starts it, and leaks at the head of a run."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for place, name in enumerate(("cat", "dog")):
            for number in range(count):
                target = tmp_path / "photos" / split / name / f"{number}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                seed = 100 * place + number + (50 if split == "val" else 0)
                coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(target)
    return tmp_path / "photos"


def launch(root, *flags):
    command = [sys.executable, root / "launch" / "data.py", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_page_a_sheet_and_json(root, photos, tmp_path):
    shutil.copy(photos / "train/cat/0.png", photos / "val/dog/leak.png")
    flags = ("--data.root", photos, "--image-size", 32, "--output", tmp_path / "out")
    done = launch(root, *flags, "--data.on-leak", "error")
    assert done.returncode == 1, done.stderr
    assert "1 of 7 val images are training images too: train/cat/0.png = val/dog/leak.png" in done.stdout
    assert "1 pictures have two labels" in done.stdout
    values = json.loads((tmp_path / "out" / "data.json").read_text())
    assert values["counts"] == {"train": [6, 6], "val": [3, 4]} and len(values["groups"]) == 1
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 8 * 96 and sheet.height > 96
    assert "What the network sees" in (tmp_path / "out" / "data.html").read_text()
