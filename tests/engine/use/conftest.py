"""Weights that a run could have left, and pictures of several shapes, for what is done with a trained network."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import archs
from engine.data.preprocessing import Preprocessing
from engine.use import evaluation

CLASSES = ["daisy", "rose", "tulip"]
PIXELS = Preprocessing((0.45, 0.5, 0.4), (0.25, 0.2, 0.3), 0.9, "bicubic", 64)


def write_weights(
    path: Path, network: str = "resnet18", known: Sequence[str] = CLASSES, seed: int = 3, **facts: str | None
) -> Path:
    """A network with random weights, in a file that says of itself what a run's does but for facts that are None."""
    torch.manual_seed(seed)
    model = archs.build(network, len(known), image_size=PIXELS.image_size)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    said = {
        "arch": network,
        "classes": json.dumps(list(known)),
        "options": "{}",
        "image_size": str(PIXELS.image_size),
        "preprocessing": PIXELS.to_json(),
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path, metadata={key: value for key, value in said.items() if value is not None})
    return path


@pytest.fixture
def weights(tmp_path) -> Callable[..., Path]:
    """weights(**): as write_weights, in this test's folder."""

    def write(name: str = "model.safetensors", **settings) -> Path:
        return write_weights(tmp_path / "weights" / name, **settings)

    return write


def write_bomb(path: Path, side: int = 65_500) -> None:
    """A PNG of a few bytes whose header declares side × side pixels."""
    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def make_pictures(folder: Path, count: int = 10) -> list[Path]:
    """JPEGs of several shapes, smooth and coloured."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = [(90, 120), (120, 90), (64, 64), (50, 200), (200, 40), (97, 131)]
    paths = []
    for seed in range(count):
        height, width = shapes[seed % len(shapes)]
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        paths.append(folder / f"{seed:02d}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=92)
    return paths


@pytest.fixture
def evaluated(monkeypatch) -> list[torch.Tensor]:
    """Logits of the evaluations that a test makes, float32 [N, classes] a pass."""
    seen: list[torch.Tensor] = []
    original = evaluation.for_use

    def watched(*arguments):
        model, forward = original(*arguments)

        def keep(images):
            seen.append(forward(images).float())
            return seen[-1]

        return model, keep

    monkeypatch.setattr(evaluation, "for_use", watched)
    return seen


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Ten pictures in a folder of their own."""
    return make_pictures(tmp_path / "pictures")
