"""Images decoded once: the same pixels where nothing is shrunk, whole or not there, shared, and where there is room."""

import errno
import types

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config import AugmentConfig, DataConfig
from engine.data.decoded import choice, store
from engine.data.decoded.choice import decoded_source
from engine.data.fingerprint import fingerprint_of
from engine.data.graph.finishing import mirrored, resized
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import DataError


def kept_of(source, mode="disk", side=64, **fields):
    return decoded_source(
        source, DataConfig(cache=mode, image_size=side, workers=2, **fields), 0.875, fingerprint_of(source)
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HCR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_those_without_it(files_source, photo_files, loader_of, backend, split):
    source = files_source(photo_files)
    kept = kept_of(source, "ram")
    assert kept.choice == "ram" and kept.source.train.decoded.shrunk == 0
    for epoch in (0, 1) if split == "train" else (0,):
        plain = list(loader_of(source, split, backend=backend).epoch(epoch))
        cached = list(loader_of(kept.source, split, backend=backend).epoch(epoch))
        late = list(loader_of(kept.source, split, backend=backend).epoch(epoch, 1))
        for one, other in zip(plain, cached, strict=True):
            difference = (one.images - other.images).abs() * 255
            assert difference.mean() < 0.3 and (one.labels == other.labels).all()  # the decoders' own difference
            assert backend == "dali" or difference.max() == 0
        for one, other in zip(cached[1:], late, strict=True):
            assert (one.images == other.images).all()
    kept.close()


def test_what_is_larger_is_shrunk_and_auto_does_not(files_source, tmp_path, photo, monkeypatch):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        photo(n, *((300, 450), (40, 500), (146, 300))[n]).save(path)
    source = files_source(paths)
    kept = kept_of(source, side=64)  # twice 73 px
    decoded = kept.source.train.decoded
    assert decoded.sizes.tolist() == [[146, 219], [40, 500], [146, 300]] and decoded.shrunk == 1
    with Image.open(paths[0]) as image:
        expected = np.asarray(image.resize((219, 146), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decoded.image(0), expected)
    monkeypatch.setenv("HCR_CACHE", str(tmp_path / "else"))
    assert kept_of(source, "auto", side=64).choice == "off"
    assert kept_of(source, "auto", side=224).choice == "ram"


def test_unreadable_files_are_told_as_without_it(files_source, photo_files, tmp_path, loader_of):
    cut, empty = tmp_path / "cut.jpg", tmp_path / "empty.jpg"
    cut.write_bytes(photo_files[0].read_bytes()[:900])
    empty.write_bytes(b"")
    source = files_source([*photo_files[:6], cut, empty])
    kept = kept_of(source)
    with pytest.raises(Unreadable, match="empty"):
        kept.source.train.decoded.image(7)
    told = []
    for each in (source, kept.source):
        loader = loader_of(each, global_batch=8)
        (batch,) = loader.epoch(0)
        assert batch.readable == 6
        told.append(sorted((bad.path, bad.reason) for bad in loader.bad_images))
    assert told[0] == told[1] and len(told[0]) == 2


def test_it_is_built_once_and_anew_for_other_data(files_source, photo_files, tmp_path, monkeypatch):
    source = files_source(photo_files[:4])
    kept_of(source)
    monkeypatch.setattr(choice, "build", lambda *_: pytest.fail("built again"))
    assert kept_of(source).choice == "disk"
    monkeypatch.undo()
    monkeypatch.setenv("HCR_CACHE", str(tmp_path / "cache"))
    other = kept_of(files_source(photo_files[:5]))
    assert len(other.source.train.decoded.sizes) == 5
    broken = min((tmp_path / "cache" / "decoded").glob("*train*.u8"))
    broken.write_bytes(broken.read_bytes()[:-1])  # cut: not whole, so it is made again
    assert all(kept_of(files_source(photo_files[:n])).source.train.decoded.image(0).shape for n in (4, 5))


def test_a_disk_that_is_full_leaves_nothing(files_source, photo_files, tmp_path, monkeypatch):
    source = files_source(photo_files[:4])

    def full(descriptor, begin, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"need 0\.\d MiB in .*decoded, where .* are free"):
        kept_of(source)
    left = sorted(path.suffix for path in (tmp_path / "cache" / "decoded").iterdir())
    assert set(left) <= {".lock"}


def test_too_little_room_is_said_before_anything_is_decoded(files_source, photo_files, monkeypatch, tmp_path):
    source = files_source(photo_files[:4])
    little = types.SimpleNamespace(available=1000)
    monkeypatch.setattr(choice.psutil, "virtual_memory", lambda: little)
    with pytest.raises(DataError, match=r"--data\.cache ram: the decoded images need"):
        kept_of(source, "ram")
    assert kept_of(source, "auto").choice == "disk"
    monkeypatch.setattr(choice, "_free", lambda folder: 1000)
    monkeypatch.setenv("HCR_CACHE", str(tmp_path / "else"))
    assert kept_of(source, "auto").choice == "off"
    with pytest.raises(DataError, match=r"--data\.cache disk: the decoded images need"):
        kept_of(source, "disk")


def test_memory_has_no_name_once_it_is_open(files_source, photo_files):
    before = set(choice.SHARED_MEMORY.glob("hcr-*"))
    kept = kept_of(files_source(photo_files[:4]), "ram")
    assert len(set(choice.SHARED_MEMORY.glob("hcr-*")) - before) == 6
    kept.forget()
    assert set(choice.SHARED_MEMORY.glob("hcr-*")) == before
    assert kept.source.train.decoded.image(3).shape[2] == 3


def test_a_file_that_is_away_is_no_missing_image(files_source, photo_files, tmp_path):
    source = files_source([*photo_files[:3], tmp_path / "gone.jpg"])
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read"):
        kept_of(source)


def test_arrays_need_none(numbered):
    kept = kept_of(numbered(4), "ram")
    assert kept.choice == "off" and kept.source.train.decoded is None


def test_processes_that_start_at_once_build_it_once(files_source, photo_files, tmp_path):
    """Each is given the same file; whoever comes second finds it whole."""
    import multiprocessing

    source = files_source(photo_files)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        seen = pool.starmap(_sum_of, [(source, number) for number in range(3)])
    assert len({total for total, _ in seen}) == 1 and len({inode for _, inode in seen}) == 1


def _sum_of(source, number):
    decoded = kept_of(source).source.train.decoded
    (path,) = (choice.cache_folder() / "decoded").glob("*-train-*.u8")
    return int(decoded.pixels.sum()), path.stat().st_ino


@pytest.mark.parametrize("channels", [1, 3])
def test_mirror_images(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(mirrored(pixels), pixels[:, ::-1])
    np.testing.assert_array_equal(mirrored(pixels.transpose(1, 0, 2)), pixels.transpose(1, 0, 2)[:, ::-1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_ones_are_what_interpolate_makes(channels, interpolation):
    whole = np.random.default_rng(0).integers(0, 256, (50, 61, channels), dtype=np.uint8)
    for pixels, size in ((whole, (20, 30)), (whole[3:40, 5:45], (64, 96)), (whole[:2, :], (32, 32))):
        planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(planes, size, mode=interpolation, antialias=True)
        np.testing.assert_array_equal(resized(pixels, size, interpolation), expected[0].permute(1, 2, 0))


def test_augmented_mirrored_and_shared_ones_are_those_without_it(files_source, photo_files, loader_of):
    source = files_source(photo_files)
    kept = kept_of(source, "ram")
    fields = {"flip": "on", "global_batch": 4, "image_size": 48, "workers": 2}
    for augment in (None, AugmentConfig(erasing=0.5, vertical_flip=0.5)):
        plain = list(loader_of(source, augment=augment, epochs=1, **fields).epoch(0))
        cached = list(loader_of(kept.source, augment=augment, epochs=1, **fields).epoch(0))
        second = list(loader_of(kept.source, augment=augment, epochs=1, rank=1, world=2, **fields).epoch(0))
        assert all((one.images - two.images).abs().mean() * 255 < 0.3 for one, two in zip(plain, cached, strict=True))
        assert all((one.images[2:] == two.images).all() for one, two in zip(cached, second, strict=True))
    kept.close()
