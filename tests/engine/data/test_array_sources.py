"""MNIST and CIFAR-10 from files of their formats, made here, and what is said where files are missing or wrong."""

import gzip
import io
import pickle
import socket
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from engine.data.sources import cifar10, mnist
from engine.data.sources.open import open_source
from engine.data.sources.source import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, zipped: bool = False, train: int = 30, val: int = 20) -> np.ndarray:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (train + val, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + val) % 10).astype(np.uint8)
    for split, part in (("train", slice(0, train)), ("val", slice(train, None))):
        for name, array in zip(mnist.FILES[split], (images[part], labels[part]), strict=True):
            data = idx(array)
            (raw / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return images


def write_cifar(root: Path, per_batch: int = 4) -> np.ndarray:
    folder = root / cifar10.FOLDER
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, per_batch, 3072), dtype=np.uint8)
    for number, name in enumerate(cifar10.BATCHES["train"] + cifar10.BATCHES["val"]):
        batch = {b"data": pixels[number], b"labels": [(number + i) % 10 for i in range(per_batch)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
    (folder / cifar10.META).write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return pixels


@pytest.fixture
def offline(monkeypatch):
    """Every connection fails at once, as without a network; counts the tries."""
    tries = []

    def refuse(*arguments, **keywords):
        tries.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return tries


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_plain_and_zipped(tmp_path, zipped, offline):
    images = write_mnist(tmp_path, zipped)
    source = open_source("mnist", tmp_path)
    np.testing.assert_array_equal(source.train.arrays, images[:30])
    np.testing.assert_array_equal(source.val.arrays, images[30:])
    assert source.train.labels.dtype == np.int64 and source.train.labels[:3].tolist() == [0, 1, 2]
    assert source.classes == list("0123456789") and not source.flip and not offline


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_a_network_the_folder_expected_is_named(tmp_path, name, offline):
    expected = {"mnist": r"MNIST/raw .*train-images-idx3-ubyte", "cifar10": r"cifar-10-batches-py .*data_batch_1"}[name]
    with pytest.raises(DataError, match=rf"{tmp_path}.*{expected}.*cannot be fetched.*--data.root"):
        open_source(name, tmp_path)
    assert offline and max(offline) <= 15, "a dead network must not hang for minutes"
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_download_off_does_not_try(tmp_path, name, offline):
    with pytest.raises(DataError, match=r"is not there; expected .*allow --data.download"):
        open_source(name, tmp_path / "none", download=False)
    assert not offline and not (tmp_path / "none").exists()


def test_a_download_is_made_once_and_then_found(tmp_path, monkeypatch):
    calls = []

    def fetch(root: Path) -> None:
        calls.append(root)
        write_mnist(root)

    monkeypatch.setattr(mnist, "_fetch", fetch)
    assert len(open_source("mnist", cache=tmp_path).train) == 30
    assert len(open_source("mnist", cache=tmp_path).train) == 30
    assert calls == [tmp_path]


def test_a_download_that_brings_too_little_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_fetch", lambda root: None)
    with pytest.raises(DataError, match=r"after fetching it, train-images-idx3-ubyte, .* still missing"):
        open_source("mnist", tmp_path)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-5], "other": b"\x89PNG" + data[4:], "empty": b""}[how])


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("train-images-idx3-ubyte", "cut", "holds 23515 bytes where its header says 23520"),
        ("train-images-idx3-ubyte", "other", "is no idx file of bytes with 3 dimensions"),
        ("t10k-labels-idx1-ubyte", "empty", "is no idx file of bytes with 1 dimension$"),
    ],
)
def test_damaged_idx_files(tmp_path, name, how, message):
    write_mnist(tmp_path)
    damage(tmp_path / "MNIST" / "raw" / name, how)
    with pytest.raises(DataError, match=rf"{name} {message}"):
        open_source("mnist", tmp_path)


def test_a_cut_gzip_file(tmp_path):
    write_mnist(tmp_path, zipped=True)
    damage(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz", "cut")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz cannot be read"):
        open_source("mnist", tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(29, dtype=np.uint8)))
    with pytest.raises(DataError, match="30 images and train-labels-idx1-ubyte 29 labels"):
        open_source("mnist", tmp_path)
    path.write_bytes(idx(np.full(30, 11, dtype=np.uint8)))
    with pytest.raises(DataError, match="label 11"):
        open_source("mnist", tmp_path)


def test_cifar_pixels_and_labels(tmp_path):
    pixels = write_cifar(tmp_path)
    source = open_source("cifar10", tmp_path)
    assert source.classes[:2] == ["airplane", "automobile"] and source.flip
    assert source.train.arrays.shape == (20, 32, 32, 3) and source.val.arrays.shape == (4, 32, 32, 3)
    red, green, blue = pixels[2, 1].reshape(3, 32, 32)
    np.testing.assert_array_equal(source.train.arrays[9], np.stack([red, green, blue], axis=2))
    assert source.train.labels[:6].tolist() == [0, 1, 2, 3, 1, 2] and source.val.labels.tolist() == [5, 6, 7, 8]


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    "content",
    [
        {b"data": Malicious(), b"labels": []},
        {b"data": np.array([Malicious()], dtype=object), b"labels": [0]},
        Path("somewhere"),
    ],
)
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, content):
    write_cifar(tmp_path)
    (tmp_path / cifar10.FOLDER / "data_batch_3").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(
        DataError, match=r"data_batch_3 is not a batch of CIFAR-10 \(UnpicklingError: .* is not allowed"
    ):
        open_source("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": np.zeros((4, 99), np.uint8), b"labels": [0] * 4}, "no uint8 images"),
        ({b"data": np.zeros((4, 3072), np.float32), b"labels": [0] * 4}, "no uint8 images"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2]}, "each of its 4 images"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 10]}, "label from 0 to 9"),
        ({}, "no uint8 images"),
        ([1, 2], "AttributeError"),
    ],
)
def test_batches_with_other_content(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / cifar10.FOLDER / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=rf"test_batch .*{message}"):
        open_source("cifar10", tmp_path)


def test_a_cut_batch_and_a_meta_file_without_names(tmp_path):
    write_cifar(tmp_path)
    meta = tmp_path / cifar10.FOLDER / cifar10.META
    meta.write_bytes(pickle.dumps({b"label_names": [b"cat"]}))
    with pytest.raises(DataError, match="names 1 classes instead of 10"):
        open_source("cifar10", tmp_path)
    damage(meta, "cut")
    with pytest.raises(DataError, match="fetch it again"):
        open_source("cifar10", tmp_path)


def test_arrays_pickled_by_any_numpy_and_protocol_are_read():
    for protocol in range(2, 6):
        data = pickle.dumps({"data": np.arange(6, dtype=np.uint8)}, protocol=protocol)
        assert cifar10.PlainUnpickler(io.BytesIO(data)).load()["data"].tolist() == list(range(6))


def test_the_real_mnist(shared_data, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (shared_data / "mnist").glob("*.gz"):
        (raw / path.name).symlink_to(path)
    source = open_source("mnist", tmp_path)
    assert (len(source.train), len(source.val)) == (60_000, 10_000)
    assert source.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    pixels = source.train.arrays / np.float32(255)
    assert pixels.mean() == pytest.approx(source.mean[0], abs=1e-3)
    assert pixels.std() == pytest.approx(source.std[0], abs=1e-3)
