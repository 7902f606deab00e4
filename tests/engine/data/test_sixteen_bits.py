"""Images of 16 bits a colour: kept to the last one on their way to the device, by both backends."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config import AugmentConfig, ConfigError, DataConfig, RunConfig
from engine.data.fingerprint import fingerprint_of
from engine.data.preprocessing import Preprocessing
from engine.data.sixteen_bits import LOOKED_AT, bits_of, decode_sixteen
from engine.data.sources.reading import Unreadable
from engine.step.weights.pretrained import with_preprocessing

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def png(pixels: np.ndarray) -> bytes:
    """uint16 [H, W] or [H, W, 2 to 4] as a PNG of 16 bits; Pillow writes grey ones alone."""
    height, width = pixels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def ramps(tmp_path):
    """A grey and a coloured PNG and a grey TIFF whose pixels are all values there are."""
    (tmp_path / "grey.png").write_bytes(png(RAMP))
    (tmp_path / "rgb.png").write_bytes(png(np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)))
    (tmp_path / "rgba.png").write_bytes(png(np.stack([RAMP, RAMP[::-1], RAMP.T, RAMP], axis=2)))
    Image.fromarray(RAMP).save(tmp_path / "grey.tiff")
    return [tmp_path / name for name in ("grey.png", "grey.tiff", "rgb.png", "rgba.png")]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_ramp_is_x_over_65535_end_to_end(ramps, files_source, loader_of, split, backend, interpolation):
    settings = {
        "image_size": 256,
        "eval_crop": 1.0,
        "crop_scale": (1.0, 1.0),
        "bits": 16,
        "interpolation": interpolation,
    }
    loader = loader_of(files_source(ramps), split, backend=backend, global_batch=4, **settings)
    batch = next(loader.epoch(0))
    order = batch.labels.new_tensor(loader.schedule.request(loader_position()).share.indices)
    colours = torch.from_numpy(np.stack([RAMP, RAMP[::-1], RAMP.T]).astype(np.float64) / 65535)
    for image, number in zip(batch.images, order.tolist(), strict=True):
        expected = colours if number >= 2 else colours[:1].expand(3, -1, -1)
        assert image.dtype == torch.float32 and (image.double() - expected).abs().max() <= 1e-6


def loader_position():
    from engine.data.loader import Position

    return Position(0, 0)


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_grey_ones_are_one_channel(ramps, files_source, loader_of, backend):
    settings = {"image_size": 256, "eval_crop": 1.0, "bits": 16, "channels": 1, "mean": (0.25,), "std": (0.5,)}
    images = next(
        loader_of(files_source(ramps[:2]), "val", backend=backend, global_batch=2, **settings).epoch(0)
    ).images
    expected = torch.from_numpy((RAMP / 65535 - 0.25) / 0.5)
    assert images.shape == (2, 1, 256, 256) and (images.double() - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_of_8_bits_beside_them_look_as_ever(photo_files, files_source, loader_of, split):
    source = files_source(photo_files)
    made = {}
    for backend in ("dali", "torchvision"):
        for bits in (8, 16):
            loader = loader_of(source, split, backend=backend, bits=bits, image_size=56, global_batch=12)
            made[backend, bits] = next(loader.epoch(0)).images
    for one, other in ((("dali", 8), ("dali", 16)), (("dali", 16), ("torchvision", 16))):
        assert 255 * (made[one] - made[other]).abs().mean(dim=(1, 2, 3)).max() <= 1


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_erased_and_mixed_ones_keep_their_bits(ramps, files_source, loader_of, backend):
    settings = {"image_size": 256, "crop_scale": (1.0, 1.0), "bits": 16, "flip": "off"}
    augment = AugmentConfig(erasing=0.5, cutmix=1.0)
    images = next(
        loader_of(
            files_source(ramps[:2]), backend=backend, global_batch=2, augment=augment, epochs=1, **settings
        ).epoch(0)
    ).images
    steps = (images.double() * 65535).round()
    assert (images.double() - steps / 65535).abs().max() <= 1e-6
    assert len(torch.unique(steps)) > 30_000, "far more than 8 bits hold"


def test_a_run_looks_whether_there_are_such(ramps, photo_files, files_source, caplog):
    config = RunConfig(data=DataConfig(image_size=32))
    assert with_preprocessing(config, files_source(photo_files)).data.bits == 8
    with caplog.at_level("INFO", logger="hcr"):
        deep = with_preprocessing(config, files_source([*photo_files, ramps[0]]))
        assert deep.data.bits == 16 and "all of them are kept" in caplog.text
        assert Preprocessing.named_by(deep.data).bits == 16
        works_on_8 = RunConfig(data=DataConfig(image_size=32), augment=AugmentConfig(policy="randaugment"))
        assert with_preprocessing(works_on_8, files_source(ramps)).data.bits == 8
        assert "read as 8, which is what the augmentation works on" in caplog.text
    assert bits_of(files_source([*photo_files * 40, ramps[0]]).train) == 16, f"{LOOKED_AT} evenly spaced, both ends"
    assert bits_of(files_source([ramps[1].parent / "gone.png"]).train) == 8


@pytest.mark.parametrize(
    "fields",
    [{"augment": AugmentConfig(policy="augmix")}, {"augment": AugmentConfig(blur=0.5)}],
    ids=["policy", "blur"],
)
def test_what_works_on_8_bits_is_refused(fields):
    with pytest.raises(ConfigError, match=r"--data.bits 16 takes crops, mirror images, erasing, mixup and CutMix"):
        RunConfig(data=DataConfig(bits=16), **fields)
    with pytest.raises(ConfigError, match="keeps 8 bits a colour"):
        RunConfig(data=DataConfig(bits=16, cache="ram"))


def test_the_cache_leaves_them_alone(ramps, files_source):
    from engine.data.decoded.choice import decoded_source

    source = files_source(ramps)
    kept = decoded_source(source, DataConfig(bits=16, cache="auto"), 0.875, fingerprint_of(source))
    assert kept.source is source and kept.choice == "off"


def test_a_cut_file_is_told(ramps):
    with pytest.raises(Unreadable):
        decode_sixteen(ramps[2].read_bytes()[:-3000], 3)
    with pytest.raises(Unreadable):
        decode_sixteen(b"no picture", 1)
