"""The same 1,000 pictures in all five layouts: the same batches bit for bit, over 1 and 2 ranks, after a resume."""

import csv
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.config import AugmentConfig, DataConfig
from engine.data.backend import make_loader
from engine.data.fingerprint import fingerprint_of
from engine.data.shards.write import make_shards
from engine.data.sources.open import open_source
from engine.data.sources.source import Source

CLASSES = ["ape", "bee", "cat", "dog", "eel"]
COUNT = 1000
LAYOUTS = ("class folders", "split folders", "list", "shards", "dataset")


def encoded(number: int) -> bytes:
    """A picture of its own, of one of a few shapes, as JPEG or PNG."""
    generator = np.random.default_rng(number)
    height, width = 18 + number % 7, 20 + number % 5
    coarse = Image.fromarray(generator.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    data = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(data, "PNG" if number % 3 == 0 else "JPEG")
    return data.getvalue()


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """The pictures in each layout; the split is the one that class folders get by seed."""
    base = tmp_path_factory.mktemp("layouts")
    whole = base / "whole"
    for number in range(COUNT):
        path = whole / CLASSES[number % 5] / f"{number:04d}{'.PNG' if number % 3 == 0 else '.jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    source = open_source("folder", whole)
    found = {
        "class folders": whole,
        "split folders": base / "parts",
        "list": base / "list.csv",
        "shards": base / "tars",
    }
    with found["list"].open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for name in ("train", "val"):
            for path, label in zip(source.split(name).paths, source.split(name).labels, strict=True):
                part = base / "parts" / name / Path(path).relative_to(whole)
                part.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, part)
                rows.writerow([Path(path).relative_to(base), source.classes[label], name])
    make_shards(source, found["shards"], 100_000, 2)
    try:
        import datasets
    except ImportError:
        return found
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    parts = {}
    for name in ("train", "val"):
        split = source.split(name)
        images = [{"bytes": split.read(index), "path": None} for index in range(len(split))]
        parts[name] = datasets.Dataset.from_dict({"image": images, "label": split.labels.tolist()}, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(base / "saved"))
    return found | {"dataset": base / "saved"}


@pytest.fixture(scope="module")
def sources(roots) -> dict[str, Source]:
    return {layout: open_source("folder", root) for layout, root in roots.items()}


def digests(source: Source, split: str, backend: str, world: int = 1, epochs: int = 3, start: tuple = (0, 0)) -> list:
    """A hash of pixels, labels and weights of each batch, the ranks' shares joined."""
    config = DataConfig(image_size=16, workers=1, backend=backend)
    loaders = [
        make_loader(
            source,
            split,
            config=config,
            global_batch=64,
            device="cpu",
            rank=rank,
            world=world,
            seed=3,
            minimum_share=1,
            augment=AugmentConfig(preset="medium") if split == "train" else None,
            epochs=epochs,
        )
        for rank in range(world)
    ]
    found = []
    try:
        for epoch in range(start[0], epochs):
            begin = start[1] if epoch == start[0] else 0
            for shares in zip(*[loader.epoch(epoch, begin) for loader in loaders], strict=True):
                digest = hashlib.sha256()
                for part in ("images", "labels", "weights"):
                    joined = np.concatenate([getattr(share, part)[: share.count].numpy() for share in shares])
                    digest.update(joined.tobytes())
                assert sum(share.count for share in shares) == shares[0].global_count
                found.append(digest.hexdigest())
    finally:
        for loader in loaders:
            loader.close()
    return found


@pytest.fixture(scope="module")
def expected(sources) -> dict[str, list]:
    """Of class folders, in one process, undisturbed."""
    return {split: digests(sources["class folders"], split, "dali") for split in ("train", "val")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_epochs_and_a_resume_are_bit_identical(sources, expected, layout):
    if layout not in sources:
        pytest.skip("datasets is not installed")
    source = sources[layout]
    assert source.classes == CLASSES and (len(source.train), len(source.val)) == (800, 200)
    assert len(set(expected["train"])) == 39, "each batch of each epoch is another"
    assert digests(source, "train", "dali") == expected["train"]
    assert digests(source, "train", "dali", start=(1, 7)) == expected["train"][13 + 7 :], "in mid-epoch"
    assert digests(source, "val", "dali", epochs=1) == expected["val"][:4]


@pytest.mark.parametrize(
    "layout", ["list", *(pytest.param(one, marks=pytest.mark.slow) for one in LAYOUTS if one != "list")]
)
def test_two_ranks_have_the_pixels_of_one(sources, expected, layout):
    if layout not in sources:
        pytest.skip("datasets is not installed")
    assert digests(sources[layout], "train", "dali", world=2, epochs=1) == expected["train"][:13]


@pytest.mark.slow
def test_the_twin_reads_them_all_alike(sources):
    found = {
        layout: digests(source, "train", "torchvision", epochs=1, start=(0, 8)) for layout, source in sources.items()
    }
    assert len(set(map(tuple, found.values()))) == 1 and len(found["list"]) == 5


def test_fingerprints_that_are_of_names_agree(sources):
    found = {layout: fingerprint_of(source) for layout, source in sources.items()}
    assert found["class folders"] == found["split folders"] == found["shards"]
    assert found["list"].digest != found["shards"].digest, "a list's names are those that it has"
    assert all((one.train_images, one.val_images) == (800, 200) for one in found.values())


@settings(max_examples=12)
@given(
    world=st.integers(1, 8),
    share=st.integers(1, 40),
    seed=st.integers(0, 99),
    layout=st.sampled_from(LAYOUTS[:4]),
    count=st.integers(1, 200),
)
def test_each_sample_once_in_equal_steps_and_exact_counts(sources, world, share, seed, layout, count):
    """Over any ranks and sizes, of every layout, as the loaders schedule them."""
    from engine.data.loader import Position, Schedule
    from engine.data.sampling import Sampler

    split = sources[layout].val.take(np.arange(count))
    for shuffle in (True, False):
        seen, steps, total = [], set(), 0
        for rank in range(world):
            sampler = Sampler(len(split), share * world, rank, world, seed, shuffle, 2 if shuffle else 1)
            schedule = Schedule(sampler, np.arange(len(split)), len(split))
            steps.add(sampler.steps_per_epoch)
            for step in range(sampler.steps_per_epoch):
                asked = schedule.request(Position(1 if shuffle else 0, step)).share
                seen += [split.path(index) for index in asked.indices[: asked.count].tolist()]
                assert (asked.weights[: asked.count] == 1).all() and not asked.weights[asked.count :].any()
                total += asked.global_count if rank == 0 else 0
        assert sorted(seen) == sorted(split.paths) and len(steps) == 1 and total == count
