"""The one value that says how images become pixels: where it comes from, and that both loaders follow it."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from engine.config import ConfigError, DataConfig, RunConfig, from_yaml, parse, to_yaml
from engine.data.preprocessing import Preprocessing

TIMM = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.95, "bicubic", 56)
SIZES = {
    16_385: "at most 16,384 pixels a side, not 16385 px",
    9_999_999: "at most 16,384 pixels a side, not 9999999 px",
    (8, 65_500): "at most 16,384 pixels a side, not 8x65500 px",
    0: "must be 1 pixel or more",
    True: "'bool' object is not iterable",
    "8": "not enough values to unpack",
}
"""Image sizes that cannot be meant, and what is said."""


def test_it_is_what_is_named_else_the_weights_else_the_source_s(numbered):
    source, data = numbered(3), DataConfig(image_size=24)
    assert Preprocessing.of(source, data) == Preprocessing(source.mean, source.std, 0.875, "bilinear", 24)
    assert Preprocessing.of(source, data, TIMM) == replace(TIMM, image_size=24)
    named = DataConfig(image_size=24, mean=(0, 0, 0), eval_crop=1.0)
    assert Preprocessing.of(source, named, TIMM) == Preprocessing((0, 0, 0), TIMM.std, 1.0, "bicubic", 24)


def test_it_survives_a_file_s_metadata_and_a_config_s_yaml(tmp_path):
    share = replace(TIMM, eval_crop=224 / 232)
    assert Preprocessing.from_json(share.to_json(), "w") == share
    config = RunConfig(data=share.into(DataConfig(workers=3)))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    read = from_yaml(tmp_path / "config.yaml").data
    assert Preprocessing.named_by(read) == share and read.workers == 3
    assert Preprocessing.named_by(DataConfig(mean=(0, 0, 0))) is None
    assert Preprocessing.named_by(replace(read, image_size=0)) is None, "a size is a part of it"


def test_flags_name_it():
    given = "--data.mean 0.5 0.5 0.5 --data.std 0.25 0.25 0.25 --data.eval-crop 0.9 --data.interpolation bicubic"
    data = parse([*given.split(), "--image-size", "64"]).data
    assert Preprocessing.named_by(data) == Preprocessing((0.5,) * 3, (0.25,) * 3, 0.9, "bicubic", 64)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "eval_crop": 1, "interpolation": "bicubic"}', "cannot be read"),
        (TIMM.to_json().replace("0.95", "1.5"), "crop share must be from 0.01 to 1, not 1.5"),
        (TIMM.to_json().replace("0.95", "1e-320"), "crop share must be from 0.01 to 1, not 1e-320"),
        (TIMM.to_json().replace("bicubic", "lanczos"), "no interpolation is called 'lanczos'"),
        (TIMM.to_json().replace("[0.2, 0.3, 0.4]", "[0.2, 0, 0.4]"), "std must be above 0"),
        (TIMM.to_json().replace('"channels": 3', '"channels": 2'), "3 channels or 1, not 2"),
        (TIMM.to_json().replace('"channels": 3', '"channels": 3.0'), "cannot be read: 'float'"),
        (TIMM.to_json().replace("0.2, 0.3", "0.2, NaN"), "mean and std must be finite"),
        (TIMM.to_json().replace("0.2, 0.3", "0.2, Infinity"), "mean and std must be finite"),
        (TIMM.to_json().replace("0.2, 0.3", "0.2, 57.4"), "std can be at most 1 where white is 1"),
        (
            TIMM.to_json().replace(json.dumps(TIMM.mean), "[123.7, 116.3, 103.5]"),
            "mean must be from 0 to 1 where white is 1",
        ),
        *((json.dumps(asdict(TIMM) | {"image_size": size}), told) for size, told in SIZES.items()),
    ],
)
def test_metadata_that_cannot_be_meant_is_told(text, told):
    with pytest.raises(
        ConfigError, match=r"^w: the preprocessing that the weights name cannot be (read|meant): "
    ) as caught:
        Preprocessing.from_json(text, "w")
    assert re.search(told, str(caught.value))


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"std": (1, 1, 0)}, "--data.std"),
        ({"mean": (123.675, 116.28, 103.53)}, "--data.mean must be from 0 to 1 where white is 1 .* divided by 255"),
        ({"mean": (-0.5, 0.5, 0.5)}, "--data.mean must be from 0 to 1"),
        ({"std": (58.395, 57.12, 57.375)}, "--data.std can be at most 1 where white is 1 .* divided by 255"),
        ({"eval_crop": 0.0}, "--data.eval-crop"),
        ({"eval_crop": 1e-320}, "eval-crop"),
        ({"eval_crop": 1.1}, "eval-crop"),
    ],
)
def test_flags_that_make_no_sense_are_told(field, told):
    with pytest.raises(ConfigError, match=told):
        DataConfig(**field)


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("eval_crop", [0.875, 0.95, 1.0, 224 / 232])
def test_evaluation_is_timm_s_own_transform(photo_files, files_source, loader_of, backend, interpolation, eval_crop):
    create_transform = pytest.importorskip("timm.data", reason="timm is not installed").create_transform
    wanted = replace(TIMM, interpolation=interpolation, eval_crop=eval_crop)
    theirs = create_transform(
        input_size=(3, 56, 56), interpolation=interpolation, mean=wanted.mean, std=wanted.std, crop_pct=eval_crop
    )
    settings = {name: getattr(wanted, name) for name in ("mean", "std", "eval_crop", "interpolation", "image_size")}
    loader = loader_of(files_source(photo_files), "val", backend=backend, **settings)
    assert loader.preprocessing == wanted
    images = torch.cat([batch.images for batch in loader.epoch(0)])
    scale = 255 * torch.tensor(wanted.std).view(3, 1, 1)
    for path, image in zip(photo_files, images, strict=True):
        with Image.open(path) as picture:
            difference = ((image - theirs(picture.convert("RGB"))) * scale).abs()
        assert difference.mean() <= 1, path


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_training_crops_take_the_filter_too(photo_files, files_source, loader_of, backend):
    source = files_source(photo_files[:4])
    batches = [
        next(loader_of(source, "train", backend=backend, interpolation=kind, image_size=150).epoch(0)).images
        for kind in ("bilinear", "bicubic", None)
    ]
    assert torch.equal(batches[0], batches[2]), "the source's own is bilinear"
    assert not torch.equal(batches[0], batches[1])


def test_the_shorter_side_is_torchvision_s(photo_files, files_source, loader_of):
    """224 out of 232, as most of its newer weights: the share times the size is the size of the resize, exactly."""
    loader = loader_of(files_source(photo_files), "val", image_size=56, eval_crop=56 / 58, interpolation="bilinear")
    theirs = v2.Compose([v2.Resize(58), v2.CenterCrop(56), v2.PILToTensor()])
    images = torch.cat([batch.images for batch in loader.epoch(0)]) * 255
    for path, image in zip(photo_files, images, strict=True):
        with Image.open(path) as picture:
            assert (image - theirs(picture).float()).abs().mean() <= 1, path
