"""Images and sources that the data tests share. Nothing here needs a network or a folder outside the repository."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config import DataConfig
from engine.data.backend import make_loader
from engine.data.sources.open import open_source
from engine.data.sources.source import Source, Split


def make_photo(seed: int, height: int = 90, width: int = 120) -> Image.Image:
    """A picture with the smoothness of a photograph: coarse noise under fine noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray((smooth + generator.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """photo(seed, height, width): an RGB picture."""
    return make_photo


@pytest.fixture(scope="session")
def digits(cache: Path) -> Source:
    """The digits, in the cache of this test session."""
    return open_source("digits", cache=cache)


@pytest.fixture(scope="session")
def numbered() -> Callable[[int], Source]:
    """numbered(n): n train and n val arrays of 12×12 whose label is their index."""

    def build(n: int) -> Source:
        arrays = np.random.default_rng(n).integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
        split = Split(labels=np.arange(n), arrays=arrays)
        names = [str(i) for i in range(n)]
        return Source("numbered", names, split, split, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), True, (0.2, 1.0), 0.875)

    return build


@pytest.fixture
def files_source() -> Callable[[list[Path]], Source]:
    """files_source(paths): the files as both train and val, all of one class, neither flipped nor normalised."""

    def build(paths: list[Path]) -> Source:
        split = Split(labels=np.zeros(len(paths), dtype=np.int64), paths=[str(path) for path in paths])
        return Source("files", ["all"], split, split, (0, 0, 0), (1, 1, 1), False, (0.3, 1.0), 0.875)

    return build


@pytest.fixture(scope="session")
def photo_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve JPEGs of several shapes."""
    folder = tmp_path_factory.mktemp("photos")
    shapes = [(90, 120), (120, 90), (64, 64), (50, 200), (200, 40), (97, 131)]
    paths = []
    for seed in range(12):
        paths.append(folder / f"{seed:02d}.jpg")
        make_photo(seed, *shapes[seed % len(shapes)]).save(paths[-1], quality=92)
    return paths


@pytest.fixture
def loader_of():
    """loader_of(source, split, **settings): a loader that is closed after the test; config fields go in by name."""
    loaders = []

    def build(source: Source, split: str = "train", *, global_batch: int = 4, device="cpu", **settings):
        fields = {name: settings.pop(name) for name in list(settings) if name in DataConfig.__dataclass_fields__}
        config = DataConfig(**{"image_size": 32, "workers": 1, "backend": "dali", **fields})
        loader = make_loader(source, split, config=config, global_batch=global_batch, device=device, **settings)
        loaders.append(loader)
        return loader

    yield build
    for loader in loaders:
        loader.close()
