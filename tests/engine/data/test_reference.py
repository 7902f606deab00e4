"""DALI against its twin and against torchvision's own transforms, and the choice between the two."""

import multiprocessing
import os
import pickle
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from engine.data import loader as loader_module
from engine.data.loader import worker_count
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError, Source, Split
from tests.waiting import PATIENCE


def both(loader_of, source, split, **settings):
    return [loader_of(source, split, backend=backend, **settings) for backend in ("dali", "torchvision")]


def grey_levels(source, one, other):
    """Mean difference of each image, in grey levels."""
    std = 255 * torch.tensor(source.std).view(3, 1, 1)
    return ((one.images - other.images).abs() * std).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_look_the_same(photo_files, files_source, loader_of, split):
    source = files_source(photo_files)
    for one, other in zip(*(loader.epoch(1) for loader in both(loader_of, source, split, image_size=56)), strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.weights, other.weights)
        assert grey_levels(source, one, other).max() <= 1
        assert one.images.stride() == other.images.stride() and one.images.dtype == other.images.dtype


def test_stop_signals_are_the_runs_own_affair(photo_files, files_source, loader_of):
    """They are sent to the whole process group; a worker that dies would end the run in the middle of a step."""
    batches = loader_of(files_source(photo_files), "val", backend="torchvision", image_size=32, global_batch=1).epoch(0)
    first = next(batches)
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(worker.pid, number)
    rest = list(batches)
    assert first.global_count + sum(batch.global_count for batch in rest) == len(photo_files)


@pytest.mark.parametrize("split", ["train", "val"])
def test_digits_look_the_same(digits, loader_of, split):
    loaders = both(loader_of, digits, split, image_size=64, global_batch=64)
    for one, other, _ in zip(*(loader.epoch(0) for loader in loaders), range(2), strict=False):
        assert torch.equal(one.labels, other.labels)
        assert grey_levels(digits, one, other).max() <= 1


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_arrays_look_the_same(loader_of, split, channels):
    arrays = np.random.default_rng(0).integers(0, 256, (9, 20, 20, *channels), dtype=np.uint8)
    data = Split(labels=np.arange(9), arrays=arrays)
    source = Source("arrays", list("abcdefghi"), data, data, (0.5,) * 3, (0.25,) * 3, True, (0.4, 1.0), 1.0)
    for one, other in zip(*(loader.epoch(2) for loader in both(loader_of, source, split)), strict=True):
        assert grey_levels(source, one, other).max() <= 1


@pytest.mark.parametrize("image_size", [32, 96])
def test_evaluation_is_torchvisions_resize_and_centre_crop(photo_files, files_source, loader_of, image_size):
    batches = loader_of(files_source(photo_files), "val", image_size=image_size).epoch(0)
    images = torch.cat([batch.images for batch in batches]) * 255
    transform = v2.Compose([v2.Resize(int(image_size / 0.875)), v2.CenterCrop(image_size), v2.PILToTensor()])
    for path, image in zip(photo_files, images, strict=True):
        with Image.open(path) as picture:
            expected = transform(picture).float()
        assert (image - expected).abs().mean() <= 1, path
        assert (image - expected).abs().max() <= 3, path


def test_training_windows_are_the_same_to_the_pixel(tmp_path, files_source, loader_of):
    """On a ramp of two levels a pixel the pixels tell where the window lay: off by one pixel is off by two levels."""
    down, across = np.meshgrid(np.arange(0, 240, 2), np.arange(0, 256, 2), indexing="ij")
    paths = []
    for number in range(16):
        ramp = np.stack([down, across, np.full_like(down, number * 10)], axis=2).astype(np.uint8)
        paths.append(tmp_path / f"{number:02d}.png")
        Image.fromarray(ramp).save(paths[-1])
    source = files_source(paths)
    seen = set()
    for epoch in range(2):
        for one, other in zip(*(loader.epoch(epoch) for loader in both(loader_of, source, "train")), strict=True):
            difference = (one.images - other.images) * 255
            assert difference.abs().max() <= 1.01  # a value of x.5 may be rounded either way
            seen |= {round(level.item()) for level in one.images[:, 0].mean(dim=(1, 2)) * 255}
    assert len(seen) > 10, "the windows must differ from one another"


def test_the_twin_resumes_too(photo_files, files_source, loader_of):
    source = files_source(photo_files)
    whole = loader_of(source, backend="torchvision", workers=2)
    batches = [*whole.epoch(0), *whole.epoch(1)]
    resumed = loader_of(source, backend="torchvision", workers=1)
    rest = [*resumed.epoch(0, 2), *resumed.epoch(1)]
    assert len(rest) == 4
    for one, other in zip(rest, batches[2:], strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_the_twin_keeps_its_workers_over_epochs(numbered, loader_of):
    loader = loader_of(numbered(12), backend="torchvision", workers=2)
    list(loader.epoch(0))
    workers = [worker.pid for worker in loader._iterator._workers]
    list(loader.epoch(1))
    list(loader.epoch(5, 1))
    assert [worker.pid for worker in loader._iterator._workers] == workers
    processes = list(loader._iterator._workers)
    loader.close()
    for process in processes:
        process.join(timeout=PATIENCE)
    assert not any(process.is_alive() for process in processes)


def test_what_the_twins_workers_need_can_be_sent_to_a_fresh_process(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files), backend="torchvision")
    batch = next(loader.epoch(0))
    dataset = pickle.loads(pickle.dumps(loader._loader.dataset))
    images, *_ = dataset[loader_module.Position(0, 0)]
    assert torch.equal(images.permute(0, 3, 1, 2) / 255, batch.images)


@pytest.mark.parametrize("backend", ["auto", "torchvision"])
def test_without_dali_the_twin_reads(numbered, loader_of, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    loader = loader_of(numbered(5), backend=backend)
    assert loader.backend == "torchvision"
    assert sum(batch.weights.sum() for batch in loader.epoch(0)) == 5


def test_without_dali_it_cannot_be_had(numbered, loader_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match=r"nvidia-dali-cuda120, or use --data\.backend torchvision"):
        loader_of(numbered(5), backend="dali")


def test_dali_reads_where_it_is(numbered, loader_of):
    assert loader_of(numbered(5), backend="auto").backend == "dali"


@pytest.mark.parametrize(
    ("configured", "cores", "ranks", "expected"),
    [(3, 2, 1, 3), (0, 2, 1, 2), (0, 64, 1, 8), (0, 16, 4, 4), (0, 2, 4, 1)],
)
def test_workers_are_shared_by_the_ranks_of_a_machine(monkeypatch, configured, cores, ranks, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert worker_count(configured) == expected


def test_real_photographs_look_the_same(unpacked, loader_of):
    source = open_source("folder", unpacked("flowers"))
    loaders = both(loader_of, source, "val", image_size=224, global_batch=15)
    for one, other, _ in zip(*(loader.epoch(0) for loader in loaders), range(2), strict=False):
        assert grey_levels(source, one, other).max() <= 2
