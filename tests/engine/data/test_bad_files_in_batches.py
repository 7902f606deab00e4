"""A folder with broken files in it: what the batches hold, what is reported, and what it costs."""

import io
import logging

import pytest
import torch
from PIL import Image

from engine.data.graph import dali
from engine.data.sources.source import DataError

BACKENDS = pytest.mark.parametrize("backend", ["dali", "torchvision"])
SPLITS = pytest.mark.parametrize("split", ["train", "val"])


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corrupt_png(image) -> bytes:
    """A PNG with both ends whole and noise for pixels: only decoding tells."""
    data = bytearray(encode(image, "PNG"))
    start = data.index(b"IDAT") + 40
    data[start : start + 400] = bytes(400)
    return bytes(data)


@pytest.fixture
def nasty(photo, tmp_path):
    """Files made here, by name: first those that every decoder must survive, then those that are no images."""
    picture = photo(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16 = Image.fromarray((torch.arange(64 * 64).view(64, 64) * 16).numpy().astype("uint16"))
    good = {
        "plain.jpg": encode(picture, "JPEG"),
        "png_named.jpg": encode(picture, "PNG"),
        "cmyk.jpg": encode(picture.convert("CMYK"), "JPEG"),
        "grey.jpg": encode(picture.convert("L"), "JPEG"),
        "progressive.jpg": encode(picture, "JPEG", progressive=True),
        "turned.jpg": encode(picture, "JPEG", exif=turned),
        "deep.png": encode(grey16, "PNG"),
        "deep.tif": encode(grey16, "TIFF"),
        "palette.png": encode(picture.convert("P"), "PNG"),
        "clear.png": encode(picture.convert("RGBA"), "PNG"),
        "lossless.webp": encode(picture, "WEBP", lossless=True),
        "extended.webp": encode(picture, "WEBP", exif=turned),
        "gif_named.png": encode(picture, "GIF"),
        "one_bit.tif": encode(picture.convert("1"), "TIFF"),
        "no_end_mark.png": encode(picture, "PNG")[:-6],
        "appended.jpg": encode(picture, "JPEG") + b"appended",
    }
    bad = {
        "cut.jpg": encode(picture, "JPEG")[:2000],
        "no_end_mark.jpg": encode(picture, "JPEG")[:-20],
        "cut.png": encode(picture, "PNG")[:9000],
        "corrupt.png": corrupt_png(picture),
        "empty.jpg": b"",
        "text.jpg": b"this is no image\n" * 50,
        "zeros.jpg": bytes(3000),
    }
    for name, data in (good | bad).items():
        (tmp_path / name).write_bytes(data)
    return [tmp_path / name for name in good], [tmp_path / name for name in bad]


@SPLITS
@pytest.mark.parametrize("global_batch", [2, 5, 23])
def test_both_backends_show_the_same_and_report_the_same(nasty, files_source, loader_of, split, global_batch):
    good, bad = nasty
    paths = [path for pair in zip(good, bad, strict=False) for path in pair] + good[len(bad) :]
    source = files_source(paths)
    ours, twin = (
        loader_of(source, split, global_batch=global_batch, image_size=48, backend=backend)
        for backend in ("dali", "torchvision")
    )
    for one, other in zip(ours.epoch(0), twin.epoch(0), strict=True):
        assert torch.equal(one.weights, other.weights) and torch.equal(one.labels, other.labels)
        assert ((one.images - other.images).abs().mean(dim=(1, 2, 3)) * 255).max() <= 2
    assert {image.path for image in ours.bad_images} == {image.path for image in twin.bad_images} == set(map(str, bad))
    assert all(image.reason for image in ours.bad_images)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_file_that_only_pillow_decodes_stays_good(photo, photo_files, files_source, loader_of, tmp_path, count):
    """In a set so small that the file is read ahead again before DALI's failure on it is known."""
    odd = tmp_path / "marker.jpg"
    data = encode(photo(1), "JPEG")
    odd.write_bytes(data[:2] + b"\xff\x00" + data[2:])
    loader = loader_of(files_source([odd, *photo_files[: count - 1]]), "train", backend="dali", global_batch=2)
    for epoch in range(4):
        assert sum(batch.weights.sum().item() for batch in loader.epoch(epoch)) == count
    assert loader.bad_images == []


@BACKENDS
def test_a_bad_images_slot_shows_a_good_one_at_weight_zero(nasty, photo_files, files_source, loader_of, backend):
    _, bad = nasty
    loader = loader_of(files_source([photo_files[0], bad[0], photo_files[1], bad[3]]), "val", backend=backend)
    batch = next(loader.epoch(0))
    assert batch.weights.tolist() == [1, 0, 1, 0]
    assert torch.equal(batch.images[1], batch.images[0]) and torch.equal(batch.images[3], batch.images[0])
    assert (batch.count, batch.global_count) == (4, 4)


@BACKENDS
@SPLITS
def test_a_share_that_is_wholly_bad_is_black(nasty, photo_files, files_source, loader_of, backend, split):
    _, bad = nasty
    source = files_source(bad[:4])
    loader = loader_of(source, split, backend=backend)
    for _ in range(2):
        batch = next(loader.epoch(0))
        assert batch.weights.tolist() == [0] * 4
        assert not batch.images.any()
    assert len(loader.bad_images) == 4


@BACKENDS
def test_one_ranks_bad_share_does_not_touch_the_others(nasty, photo_files, files_source, loader_of, backend):
    _, bad = nasty
    source = files_source([*bad[:2], *photo_files[:2]])
    batches = [next(loader_of(source, "val", rank=rank, world=2, backend=backend).epoch(0)) for rank in range(2)]
    assert [batch.weights.tolist() for batch in batches] == [[0, 0], [1, 1]]


@BACKENDS
def test_every_bad_image_is_told_once(nasty, photo_files, files_source, loader_of, backend):
    _, bad = nasty
    loader = loader_of(files_source([*photo_files[:5], *bad]), backend=backend, global_batch=3)
    told = []
    loader.on_bad = told.append
    for epoch in range(2):
        assert sum(batch.weights.sum() for batch in loader.epoch(epoch)) == 5
    assert told == loader.bad_images
    assert sorted(image.path for image in told) == sorted(map(str, bad))


@BACKENDS
def test_error_mode_names_all_bad_images_of_the_batch(nasty, photo_files, files_source, loader_of, backend):
    good, bad = nasty
    paths = [*photo_files[:4], good[0], bad[3], good[13], bad[0], *bad[4:6]]
    loader = loader_of(files_source(paths), "val", on_bad_image="error", backend=backend)
    iterator = loader.epoch(0)
    assert next(iterator).weights.tolist() == [1] * 4
    with pytest.raises(DataError) as caught:
        next(iterator)
    message = str(caught.value)
    assert message.startswith("2 images of this batch cannot be decoded")
    assert str(bad[3]) in message and str(bad[0]) in message and str(bad[4]) not in message
    assert "--data.on-bad-image skip" in message
    with pytest.raises(DataError, match=str(bad[4])):
        next(loader.epoch(0, 2))


def test_known_bad_files_never_reach_the_decoder_again(nasty, photo_files, files_source, loader_of, monkeypatch):
    good, bad = nasty
    one_bit = next(path for path in good if path.name == "one_bit.tif")
    builds = []
    original = dali.build_graph
    monkeypatch.setattr(dali, "build_graph", lambda *arguments: builds.append(1) or original(*arguments))
    loader = loader_of(files_source([*photo_files[:5], *bad, one_bit]))
    list(loader.epoch(0))
    after_first = len(builds)
    assert after_first > 1, "the corrupt PNG and the 1-bit TIFF must have failed once"
    for epoch in (1, 2):
        list(loader.epoch(epoch))
    assert len(builds) == after_first


def test_bad_files_change_nothing_for_the_images_around_them(nasty, photo_files, files_source, loader_of):
    _, bad = nasty
    clean, soiled = list(photo_files), list(photo_files)
    soiled[5], soiled[6] = bad[3], bad[1]
    ours, theirs = (list(loader_of(files_source(paths), prefetch=3).epoch(0)) for paths in (soiled, clean))
    kept = 0
    for one, other in zip(ours, theirs, strict=True):
        real = one.weights == 1
        assert torch.equal(one.images[real], other.images[real])
        kept += int(real.sum())
    assert kept == 10


@BACKENDS
def test_a_file_that_goes_while_we_train_is_reported(photo, tmp_path, files_source, loader_of, backend):
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths):
        photo(i).save(path)
    loader = loader_of(files_source(paths), "val", backend=backend)
    assert next(loader.epoch(0)).weights.tolist() == [1] * 4
    paths[2].unlink()
    assert next(loader.epoch(0)).weights.tolist() == [1, 1, 0, 1]
    assert [(image.path, image.reason) for image in loader.bad_images] == [(str(paths[2]), "No such file or directory")]


def test_a_failure_that_no_image_causes_is_not_blamed_on_one(photo_files, files_source, loader_of, monkeypatch):
    loader = loader_of(files_source(photo_files), "val")
    next(loader.epoch(0))
    original, graph = loader._outputs, loader._graph

    def fail(given):
        if given is graph:
            raise RuntimeError("out of memory")
        return original(given)

    monkeypatch.setattr(loader, "_outputs", fail)
    with pytest.raises(RuntimeError, match="although it decodes each of its images") as caught:
        next(loader.epoch(0))
    assert "out of memory" in str(caught.value.__cause__)
    assert not loader.bad_images


@BACKENDS
def test_every_nasty_file_decodes_right_or_is_reported(unpacked, files_source, loader_of, backend, caplog):
    """The verdicts of LIST.tsv: Pillow's, except the 16-bit images, which are scaled."""
    caplog.set_level(logging.ERROR)
    folder = unpacked("nasty")
    rows = [line.split("\t") for line in (folder / "LIST.tsv").read_text().splitlines()[1:]]
    paths = [folder / row[0] for row in rows]
    assert len(paths) == 26 and all(path.is_file() for path in paths)
    hopeless = {str(folder / row[0]) for row in rows if "fails" in row[-1]}
    loader = loader_of(files_source(paths), "val", global_batch=7, image_size=96, backend=backend)
    batches = list(loader.epoch(0))
    assert {image.path for image in loader.bad_images} == hopeless and len(hopeless) == 3
    weights = torch.cat([batch.weights for batch in batches])
    assert [str(path) not in hopeless for path in paths] == weights.bool().tolist()


@SPLITS
def test_backends_agree_on_every_nasty_file(unpacked, files_source, loader_of, split):
    paths = sorted(path for path in unpacked("nasty").iterdir() if path.suffix != ".tsv")
    loaders = [loader_of(files_source(paths), split, image_size=96, backend=name) for name in ("dali", "torchvision")]
    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert ((one.images - other.images).abs().mean(dim=(1, 2, 3)) * 255).max() <= 2
