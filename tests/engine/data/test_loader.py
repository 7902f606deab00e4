"""What the trainer relies on: exact counts, the same batches from any position, memory of their own."""

import gc
import threading
from concurrent.futures import Executor, Future
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.data.graph import dali
from engine.data.sources.source import DataError
from tests.waiting import PATIENCE


def assert_same(ours, theirs):
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.weights, theirs.weights)
    assert (ours.count, ours.global_count) == (theirs.count, theirs.global_count)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("n", [13, 16, 17])
def test_every_label_once_an_epoch_over_the_ranks(numbered, loader_of, split, world, n):
    loaders = [loader_of(numbered(n), split, global_batch=4, rank=rank, world=world) for rank in range(world)]
    for epoch in range(2):
        per_rank = [list(loader.epoch(epoch)) for loader in loaders]
        assert {len(batches) for batches in per_rank} == {-(-n // 4)} == {loader.steps_per_epoch for loader in loaders}
        labels = [label for batches in per_rank for b in batches for label in b.labels[b.weights == 1].tolist()]
        assert sorted(labels) == list(range(n))
        assert sum(batch.global_count for batch in per_rank[0]) == n
        assert sum(batch.count for batches in per_rank for batch in batches) == n
        if split == "train":
            assert min(len(batch.labels) for batches in per_rank for batch in batches) >= 2


def test_training_is_reshuffled_and_evaluation_is_in_order(numbered, loader_of):
    train, val = loader_of(numbered(40)), loader_of(numbered(40), "val")
    orders = [torch.cat([batch.labels for batch in train.epoch(epoch)]).tolist() for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert torch.cat([batch.labels for batch in val.epoch(0)]).tolist() == list(range(40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layout_and_dtypes(digits, loader_of, dtype):
    batch = next(loader_of(digits, global_batch=6, image_size=24, dtype=dtype).epoch(0))
    assert batch.images.shape == (6, 3, 24, 24) and batch.images.dtype == dtype
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64 and batch.weights.dtype == torch.float32
    assert batch.labels.shape == batch.weights.shape == (6,)


def test_images_are_normalised(numbered, loader_of):
    source = numbered(8)
    plain = replace(source, mean=(0, 0, 0), std=(1, 1, 1))
    normalised = next(loader_of(source, "val", global_batch=8).epoch(0)).images
    expected = next(loader_of(plain, "val", global_batch=8).epoch(0)).images
    assert expected.min() >= 0 and 0.9 < expected.max() <= 1
    mean, std = torch.tensor(source.mean).view(3, 1, 1), torch.tensor(source.std).view(3, 1, 1)
    torch.testing.assert_close(normalised, (expected - mean) / std, atol=1e-5, rtol=1e-5)


def test_resume_gives_the_very_next_batches_with_another_thread_count(photo_files, files_source, loader_of):
    source = files_source(photo_files)
    whole = loader_of(source, workers=3, prefetch=3, seed=5)
    batches = {(epoch, step): b for epoch in range(3) for step, b in enumerate(whole.epoch(epoch))}
    for epoch, step in [(0, 2), (1, 1), (2, 0)]:
        resumed = loader_of(source, workers=1, prefetch=1, seed=5)
        rest = list(resumed.epoch(epoch, step)) + list(resumed.epoch(epoch + 1) if epoch < 2 else [])
        assert len(rest) == (3 - step) + (3 if epoch < 2 else 0)
        positions = [(epoch, s) for s in range(step, 3)] + [(epoch + 1, s) for s in range(3)]
        for position, batch in zip(positions, rest, strict=False):
            assert_same(batch, batches[position])


def test_another_seed_gives_other_batches(photo_files, files_source, loader_of):
    source = files_source(photo_files)
    one, two = (next(loader_of(source, seed=seed).epoch(0)) for seed in (0, 1))
    assert not torch.equal(one.images, two.images)


def test_an_image_is_cut_anew_each_epoch(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files[:1]), global_batch=1, minimum_share=1)
    images = [next(loader.epoch(epoch)).images for epoch in range(4)]
    assert all(not torch.equal(images[0], image) for image in images[1:])


@pytest.mark.parametrize("split", ["train", "val"])
def test_two_ranks_together_give_the_batch_of_one(photo_files, files_source, loader_of, split):
    source = files_source(photo_files[:11])
    alone = loader_of(source, split, global_batch=8)
    ranks = [loader_of(source, split, global_batch=8, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone.epoch(1), *(loader.epoch(1) for loader in ranks), strict=True):
        real = [part.weights == 1 for part in parts]
        images = torch.cat([part.images[keep] for part, keep in zip(parts, real, strict=True)])
        assert torch.equal(images, whole.images[whole.weights == 1])
        assert all(part.global_count == whole.global_count for part in parts)


def test_batches_stay_valid_while_later_ones_are_made(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files), workers=2, prefetch=2)
    kept, copies = [], []
    for epoch in range(6):
        for batch in loader.epoch(epoch):
            kept.append(batch)
            copies.append(batch.images.clone())
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))
    assert len({batch.images.data_ptr() for batch in kept}) == len(kept)


def test_batches_outlive_their_loader(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files))
    batch = next(loader.epoch(0))
    copy = batch.images.clone()
    loader.close()
    gc.collect()
    assert torch.equal(batch.images, copy)


def test_the_graph_is_built_once_and_works_on_across_epochs(photo_files, files_source, loader_of, monkeypatch):
    built = []
    original = dali.build_graph
    monkeypatch.setattr(dali, "build_graph", lambda *arguments: built.append(1) or original(*arguments))
    loader = loader_of(files_source(photo_files), prefetch=2)
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            pass
    loader._wait()
    assert len(built) == 1
    assert [item.request.position.epoch for item in loader._flight] == [3, 3]


def test_evaluation_prepares_nothing_that_may_not_be_wanted(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files), "val")
    for _ in range(2):
        assert len(list(loader.epoch(0))) == 3
        assert not loader._flight and not loader._reading


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_an_epoch_may_be_left_at_any_point(photo_files, files_source, loader_of, split, backend):
    source = files_source(photo_files)
    expected = list(loader_of(source, split, backend=backend).epoch(0))
    loader = loader_of(source, split, backend=backend)
    for taken in (1, 2, 3):
        iterator = loader.epoch(0)
        for _ in range(taken):
            next(iterator)
    del iterator
    for ours, theirs in zip(loader.epoch(0), expected, strict=True):
        assert_same(ours, theirs)


def test_a_left_iterator_does_not_disturb_a_newer_one(numbered, loader_of):
    loader = loader_of(numbered(20))
    old = loader.epoch(0)
    next(old)
    new = loader.epoch(0)
    next(new)
    with pytest.raises(RuntimeError, match="left for a newer one"):
        next(old)
    assert len(list(new)) == 4


def test_close_ends_the_threads_and_may_be_repeated(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files))
    next(loader.epoch(0))
    own = set(loader._threads._threads)
    assert own and own <= set(threading.enumerate())
    loader.close()
    loader.close()
    assert not own & set(threading.enumerate())


def test_graphs_are_freed_at_once_and_not_by_the_collector(photo, photo_files, tmp_path, files_source, loader_of):
    """A graph that waits for the garbage collector can be collected in a forked process, which hangs there."""
    from nvidia.dali import Pipeline

    photo(0).convert("1").save(tmp_path / "one_bit.tif")  # DALI fails on it, so that the search for culprits runs too
    gc.collect()
    before = len(Pipeline._pipes)
    gc.disable()
    try:
        loader = loader_of(files_source([*photo_files, tmp_path / "one_bit.tif"]))
        assert len(list(loader.epoch(0))) == 4
        assert len(Pipeline._pipes) == before + 1
        loader.close()
        assert len(Pipeline._pipes) == before
    finally:
        gc.enable()


def test_a_forgotten_loader_ends_its_threads_too(photo_files, files_source):
    from engine.config import DataConfig

    config = DataConfig(image_size=32, workers=1)
    loader = dali.DaliLoader(files_source(photo_files), "train", config=config, global_batch=4, device="cpu")
    next(loader.epoch(0))
    own = list(loader._threads._threads)
    del loader
    gc.collect()
    for thread in own:
        thread.join(timeout=PATIENCE)
    assert not any(thread.is_alive() for thread in own)


def test_limit_trains_on_so_many_images_and_evaluates_on_all(numbered, loader_of):
    train, val = (loader_of(numbered(30), split, limit=10, seed=3) for split in ("train", "val"))
    epochs = [torch.cat([b.labels[b.weights == 1] for b in train.epoch(epoch)]).tolist() for epoch in range(2)]
    assert len(epochs[0]) == 10 and set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    assert train.steps_per_epoch == 3 and val.steps_per_epoch == 8


@pytest.mark.parametrize(("setting", "flips"), [("auto", True), ("on", True), ("off", False)])
def test_flip_is_the_sources_unless_it_is_said(numbered, loader_of, setting, flips):
    source = replace(numbered(64), crop_scale=(1.0, 1.0), mean=(0, 0, 0), std=(1, 1, 1))
    loader = loader_of(source, global_batch=64, image_size=12, flip=setting)
    batch = next(loader.epoch(0))
    pixels = torch.from_numpy(source.train.arrays[batch.labels]).permute(0, 3, 1, 2) / 255
    same = (batch.images - pixels).abs().amax(dim=(1, 2, 3)) < 1e-3
    mirrored = (batch.images - pixels.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert (same ^ mirrored).all()
    assert 20 < mirrored.sum() < 44 if flips else not mirrored.any()


def test_digits_are_never_flipped_unless_it_is_said(digits, loader_of):
    assert not loader_of(digits).flip
    assert loader_of(digits, flip="on").flip
    assert not loader_of(digits, "val", flip="on").flip


def test_crop_scale_is_the_sources_unless_it_is_said(digits, loader_of):
    assert loader_of(digits).crop_scale == (0.7, 1.0)
    assert loader_of(digits, crop_scale=(0.5, 0.6)).crop_scale == (0.5, 0.6)


def test_a_batch_that_ranks_cannot_share(digits, loader_of):
    with pytest.raises(DataError, match="3 images leaves some of 4 ranks without any"):
        loader_of(digits, global_batch=3, rank=0, world=4)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 2), (7, 9)])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_tiny_and_thin_images(photo, tmp_path, files_source, loader_of, size, split, backend):
    photo(0, *size).save(tmp_path / "a.png")
    batch = next(loader_of(files_source([tmp_path / "a.png"]), split, backend=backend).epoch(0))
    assert batch.weights[0] == 1 and torch.isfinite(batch.images).all()


def test_memory_does_not_grow_with_the_epochs(photo_files, files_source, loader_of):
    import psutil

    loader = loader_of(files_source(photo_files), image_size=128, global_batch=12)
    sizes = []
    for epoch in range(60):
        for _ in loader.epoch(epoch):
            pass
        sizes.append(psutil.Process().memory_info().rss)
    batch_bytes = 12 * 3 * 128 * 128 * 4
    assert np.mean(sizes[-5:]) - np.mean(sizes[20:25]) < 4 * batch_bytes


class AtOnce(Executor):
    """Runs what it is given in the thread that gives it."""

    def submit(self, function, /, *arguments, **keywords):
        done = Future()
        done.set_result(function(*arguments, **keywords))
        return done


def test_batches_are_prepared_beside_the_training_thread_and_are_the_same(photo_files, files_source, loader_of):
    """All but the first, which is waited for."""
    beside, inline = (loader_of(files_source(photo_files), global_batch=4) for _ in range(2))
    inline._preparer = AtOnce()
    threads = {loader: [] for loader in (beside, inline)}
    for loader, seen in threads.items():
        feed = loader._feed
        loader._feed = lambda item, feed=feed, seen=seen: (seen.append(threading.current_thread()), feed(item))
    for epoch, start in ((0, 0), (1, 1), (5, 0)):  # on, from a step of another epoch, and with a flight to discard
        pairs = zip(beside.epoch(epoch, start), inline.epoch(epoch, start), strict=True)
        for _, (one, other) in zip(range(3), pairs, strict=False):
            assert_same(one, other)
    here = threading.current_thread()
    assert set(threads[inline]) == {here}
    assert threads[beside].count(here) < len(threads[beside]) / 2 and threads[beside][2] is not here


def test_what_preparing_meets_is_raised_at_the_next_batch(photo_files, files_source, loader_of):
    loader = loader_of(files_source(photo_files), global_batch=4)
    batches = loader.epoch(0)
    next(batches)
    loader._wait()

    def gone(position):
        raise OSError("the disk is gone")

    loader._start_reading = gone
    next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    loader.close()


def test_as_many_files_are_read_at_once_as_there_are_readers(photo_files, files_source, loader_of):
    """A file whose bytes take a while to come keeps none of the others waiting."""
    loader = loader_of(files_source(photo_files), global_batch=12, readers=6)
    load, together = loader.files.load, threading.Barrier(6)
    slow = iter(range(6))

    def answers_late(index):
        if next(slow, None) is not None:
            together.wait(PATIENCE)  # only six at once get by
        return load(index)

    loader.files.load = answers_late
    next(loader.epoch(0))
    assert together.n_waiting == 0 and next(slow, None) is None


@pytest.mark.parametrize("first", [True, False])
def test_memory_that_is_out_is_no_fault_of_an_image(photo_files, files_source, loader_of, monkeypatch, first):
    """Neither where DALI begins nor in a later batch: nothing is reported as unreadable."""
    from engine.data.graph import dali

    class Full:
        def __init__(self, graph):
            self.graph = graph

        def __getattr__(self, name):
            return getattr(self.graph, name)

        def outputs(self, **more):
            raise RuntimeError("Critical error in pipeline:\nError in CPU operator `resize`:\n\nstd::bad_alloc")

    build = dali.build_graph
    loader = loader_of(files_source(photo_files), "val", global_batch=2, backend="dali")
    if first:
        monkeypatch.setattr(dali, "build_graph", lambda *given: Full(build(*given)))
    batches = loader.epoch(0)
    with pytest.raises(MemoryError, match="DALI, which prepares 2 batches of up to 2 images of "):
        for _ in range(2):
            next(batches)
            loader._wait()
            loader._graph = Full(loader._graph)
    assert not loader.bad_images
