"""Pictures of every format and mode that Pillow makes, whole and cut, and those that packages ship: both backends."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

JPEGS = {
    "plain": {},
    "progressive": {"progressive": True},
    "444": {"subsampling": 0},
    "420": {"subsampling": 2},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "quality 5": {"quality": 5},
    "comment": {"comment": b"x" * 1000},
    "resolution": {"dpi": (1, 1)},
}


def lab(photo: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(photo, ImageCms.buildTransform(*profiles, "RGB", "LAB"))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(photo: Image.Image) -> dict[str, bytes]:
    """By name; all of one picture."""
    made = {f"{name}.jpg": encode(photo, "JPEG", **({"quality": 90} | options)) for name, options in JPEGS.items()}
    made |= {f"{mode}.jpg": encode(photo.convert(mode), "JPEG", quality=90) for mode in ("L", "CMYK", "YCbCr")}
    made |= {f"{mode}.png": encode(photo.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    made |= {
        f"{mode}.tif": encode(photo.convert(mode), "TIFF") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made[f"{compression}.tif"] = encode(photo, "TIFF", compression=compression)
    made |= {f"{mode}.bmp": encode(photo.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")}
    made |= {f"{mode}.ppm": encode(photo.convert(mode), "PPM") for mode in ("1", "L", "RGB")}
    made |= {f"{mode}.webp": encode(photo.convert(mode), "WEBP") for mode in ("RGB", "RGBA")}
    made["lossless.webp"] = encode(photo, "WEBP", lossless=True)
    made["moving.webp"] = encode(photo, "WEBP", save_all=True, append_images=[photo.rotate(90)])
    made["moving.gif"] = encode(photo.convert("P"), "GIF", save_all=True, append_images=[photo.convert("P").rotate(90)])
    made["moving.png"] = encode(photo, "PNG", save_all=True, append_images=[photo.rotate(90)])
    made["still.gif"] = encode(photo.convert("P"), "GIF")
    made["lab.tif"] = encode(lab(photo), "TIFF")
    sixteen = (np.asarray(photo.convert("L")).astype(np.uint16)) * 257
    made |= {
        f"sixteen.{end}": encode(Image.fromarray(sixteen), kind) for end, kind in (("png", "PNG"), ("tif", "TIFF"))
    }
    made["float.tif"] = encode(Image.fromarray(np.asarray(photo.convert("L")).astype(np.float32)), "TIFF")
    made["named wrongly.jpg"] = made["RGB.png"]
    if features.check("jpg_2000"):
        made |= {f"{mode}.jp2.jpg": encode(photo.convert(mode), "JPEG2000") for mode in ("L", "LA", "RGB", "RGBA")}
    if features.check("avif"):
        made["still.avif"] = encode(photo, "AVIF")
    return made


def through(loader_of, files_source, paths: list[Path], backend: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(grey levels, [3, 48, 48] by path; reasons by path) in evaluation, a file a batch."""
    loader = loader_of(files_source(paths), "val", global_batch=1, image_size=48, backend=backend)
    shown = {
        str(path): batch.images[0].float() * 255
        for path, batch in zip(paths, loader.epoch(0), strict=True)
        if batch.readable
    }
    return shown, {image.path: image.reason for image in loader.bad_images}


def agree(loader_of, files_source, paths: list[Path]) -> tuple[dict, dict]:
    """Both backends within 3 grey levels in the mean, or both refuse by path."""
    (ours, bad), (theirs, refused) = (through(loader_of, files_source, paths, one) for one in ("dali", "torchvision"))
    assert bad.keys() == refused.keys(), bad.keys() ^ refused.keys()
    assert all(bad.values()) and all(refused.values())
    off = {path: (ours[path] - theirs[path]).abs().mean().item() for path in ours}
    assert not {path: levels for path, levels in off.items() if levels > 3}
    return ours, bad


def test_every_format_and_mode(photo, files_source, loader_of, tmp_path):
    """W13: TIFF's grey with alpha and CIELAB are those of Pillow, floating-point pixels are refused by both."""
    paths = []
    for name, data in pictures(photo(1, 60, 80)).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    shown, bad = agree(loader_of, files_source, paths)
    assert set(bad) == {str(tmp_path / "float.tif")} and len(shown) > 40
    colour, grey = shown[str(tmp_path / "RGB.png")], shown[str(tmp_path / "L.png")]
    for name, expected, levels in (
        *[("lab.tif", colour, 4), ("RGB.tif", colour, 1), ("CMYK.tif", colour, 1), ("RGBA.bmp", colour, 1)],
        *[("LA.tif", grey, 1), ("sixteen.png", grey, 1), ("sixteen.tif", grey, 1), ("L.jp2.jpg", grey, 3)],
    ):
        if str(tmp_path / name) in shown:
            assert (shown[str(tmp_path / name)] - expected).abs().mean() < levels, name


@pytest.mark.parametrize(
    "kept", [0.5, pytest.param(0.05, marks=pytest.mark.slow), pytest.param(0.97, marks=pytest.mark.slow)]
)
def test_every_format_cut(photo, files_source, loader_of, tmp_path, kept):
    """W5: nobody's decoder is handed a cut file whose end was not looked at, and both refuse the same ones."""
    paths = []
    for name, data in pictures(photo(2, 60, 80)).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data[: int(len(data) * kept)])
    _, bad = agree(loader_of, files_source, paths)
    assert len(bad) > 0.7 * len(paths)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_cut_jpeg_2000_beside_small_jpegs(photo, files_source, loader_of, tmp_path, split):
    """W5: SIGSEGV in DALI's JPEG 2000 library, four times in four, when such files shared a batch."""
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"{number}.jpg")
        picture = photo(number, 40, 40)
        data = encode(picture, "JPEG2000") if number % 2 else encode(picture, "JPEG")
        paths[-1].write_bytes(data[: len(data) // 2] if number % 2 else data)
    loader = loader_of(files_source(paths), split, global_batch=8)
    for _ in range(4):
        assert sum(batch.readable for batch in loader.epoch(0)) == 4
    assert {image.path for image in loader.bad_images} == {str(path) for path in paths[1::2]}


def test_pictures_that_packages_ship(files_source, loader_of):
    """scikit-learn's photographs and matplotlib's samples."""
    import matplotlib
    import sklearn.datasets

    folders = [Path(sklearn.datasets.__file__).parent / "images", Path(matplotlib.get_data_path()) / "sample_data"]
    paths = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in (".jpg", ".png")]
    assert len(paths) >= 3
    shown, bad = agree(loader_of, files_source, paths)
    assert len(shown) == len(paths) and not bad
