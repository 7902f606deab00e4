"""The referee: what Pillow makes of files, whole and broken, and the search for culprits."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.data.bad_images import ImageFiles, decode, find_culprits, look
from engine.data.sources.reading import Unreadable, read
from engine.data.sources.source import Split


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_look_gives_the_size_that_decoding_gives(photo, kind, orientation):
    data = encode(photo(0, 40, 60), kind, exif=oriented(orientation))
    header = look(data)
    image = decode(data)
    assert (header.width, header.height) == image.size == ((60, 40) if orientation < 5 else (40, 60))


def test_orientation_is_applied(photo):
    upright = photo(1, 40, 60)
    turned = decode(encode(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=oriented(6)))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(upright))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = np.asarray(decode(encode(Image.fromarray(levels), kind)))
    np.testing.assert_allclose(image, np.repeat(levels[:, :, None] / 257, 3, axis=2), atol=0.51)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb(photo, mode):
    source = photo(2).convert(mode)
    image = decode(encode(source, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(float) - np.asarray(source.convert("RGB"))).mean() < 12


def test_floating_point_pixels_are_refused():
    data = encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(Unreadable, match="no agreed white"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_look_finds_cut_files(photo, kind, kept):
    data = encode(photo(3), kind)
    with pytest.raises(Unreadable):
        look(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_something_appended_is_not_a_cut(photo, kind):
    assert look(encode(photo(3), kind) + b"appended")[:2] == (90, 120)


@pytest.mark.parametrize("data", [b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0" * 1000])
def test_a_look_refuses_what_is_no_image(data):
    with pytest.raises(Unreadable, match=r"no image format|truncated|cannot|broken"):
        look(data)


def test_a_giant_declared_size_is_refused_from_the_header(photo):
    data = bytearray(encode(photo(4), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    with pytest.raises(Unreadable, match="declares more than 178956970 pixels"):
        look(bytes(data))


@pytest.mark.parametrize(
    ("kind", "options", "fast"),
    [
        ("JPEG", {}, True),
        ("PNG", {}, True),
        ("BMP", {}, False),
        ("TIFF", {}, False),
        ("WEBP", {}, True),
        ("WEBP", {"exif": oriented(1)}, False),
        ("GIF", {}, False),
        ("JPEG2000", {}, False),
        ("PPM", {}, False),
    ],
)
def test_formats_that_dali_lacks_are_known_beforehand(photo, kind, options, fast):
    assert look(encode(photo(5), kind, **options)).fast is fast


def test_reasons_for_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for name, reason in (("empty.jpg", "the file is empty"), ("gone.jpg", "No such file"), (".", "Is a directory")):
        with pytest.raises(Unreadable, match=reason):
            read(str(tmp_path / name))


def test_sizes_are_remembered_and_looked_at_once(photo, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    photo(6, 30, 50).save(path)
    files = ImageFiles(Split(np.zeros(1, dtype=np.int64), [str(path)]))
    assert files.sizes.tolist() == [[0, 0]]
    assert files.load(0) == path.read_bytes()
    monkeypatch.setattr("engine.data.bad_images.look", None)
    assert files.load(0) == path.read_bytes()
    assert files.sizes.tolist() == [[30, 50]]


def test_what_dali_lacks_comes_as_bmp(photo, tmp_path):
    path = tmp_path / "a.gif"
    photo(6, 30, 50).save(path)
    files = ImageFiles(Split(np.zeros(1, dtype=np.int64), [str(path)]))
    with Image.open(io.BytesIO(files.load(0))) as image, Image.open(path) as original:
        assert image.format == "BMP"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_broken_exif_does_not_cost_the_image(photo):
    data = encode(photo(7, 30, 50), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20)
    assert look(data)[:2] == (30, 50)
    assert decode(data).size == (50, 30)


@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=6))))
def test_bisection_finds_exactly_the_culprits(case):
    count, bad = case
    bad = bad if count else set()
    runs = []

    def works(group) -> bool:
        runs.append(len(group))
        return not bad & set(group)

    assert find_culprits(count, works) == sorted(bad)
    assert len(runs) <= 1 + 2 * len(bad) * (1 + count.bit_length())


def test_bisection_reports_nobody_when_only_the_group_fails():
    assert find_culprits(8, lambda group: len(group) < 8) == []


def test_a_corrupt_png_with_its_end_mark_passes_the_look_only(photo):
    data = bytearray(encode(photo(8), "PNG"))
    start = data.index(b"IDAT") + 40
    data[start : start + 400] = zlib.compress(b"other")[:1] * 400
    assert look(bytes(data))[:2] == (90, 120)
    with pytest.raises(Unreadable):
        decode(bytes(data))
