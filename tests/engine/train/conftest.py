"""Whole runs in the test's own process: everything but the launcher, in about a second."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

RUN = ["--arch", "convnet_bn", "--image-size", "32", "--batch-size", "4", "--epochs", "1", "--precision", "fp32"]
RUN += ["--log.no-plots", "--log.monitor-interval", "0", "--data.workers", "1"]


def picture(path: Path, seed: int) -> None:
    """A small JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes, 8 + 4 pictures each."""
    for split, count in (("train", 8), ("val", 4)):
        for place, name in enumerate(("cat", "dog")):
            for number in range(count):
                picture(tmp_path / "photos" / split / name / f"{number:03}.jpg", 1000 * place + number)
    return tmp_path / "photos"


@dataclass
class Done:
    """How a run ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_here(photos, tmp_path, reset_accelerator, capsys):
    """Runs launch/train.py's own code with flags over RUN; checks the exit code, and that no traceback was shown."""
    from engine.config import ConfigError, parse
    from engine.train.run import fail, train

    def run(*flags, code: int = 0, base: bool = True) -> Done:
        reset_accelerator()
        logging.getLogger("hcr").handlers.clear()  # its stream is that of an earlier test
        given = [*RUN, "--data.root", str(photos), "--output", str(tmp_path / "run")] if base else []
        capsys.readouterr()
        try:
            ended = train(parse([*given, *map(str, flags)]))
        except ConfigError as error:
            ended = fail(error)
        logging.getLogger("hcr").handlers.clear()
        said = capsys.readouterr()
        assert ended == code, f"exit {ended}\n{said.out}\n{said.err}"
        assert "Traceback" not in said.out + said.err
        return Done(ended, said.out, said.err)

    return run


@pytest.fixture
def resume(run_here, tmp_path):
    """Goes on with that run."""

    def go_on(*flags, code: int = 0, **more) -> Done:
        return run_here("--resume", tmp_path / "run", *flags, code=code, base=False, **more)

    return go_on


@pytest.fixture
def weights(tmp_path):
    """The finished run's weights as bytes by name; weights(name) is another run's."""

    def read(run: str = "run") -> dict[str, bytes]:
        tensors = load_file(tmp_path / run / "model.safetensors")
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    return read
