"""What the libraries' weights expect: for every pair of a network and a source, what the library itself resolves."""

import pytest
from torchvision import models

import archs
from engine.config import ConfigError
from engine.data.published import published_classes, published_preprocessing

PAIRS = [(name, source) for name in archs.names() for source in archs.lookup(name).sources]
EXCEPTIONS: dict[str, str] = {}
"""Sources whose images are prepared otherwise here, with the reason."""


def as_timm_resolves(model: str) -> tuple:
    timm = pytest.importorskip("timm", reason="timm is not installed: its weights cannot be compared")
    from timm.data import resolve_data_config

    found = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    assert found["crop_mode"] == "center"
    size = found["input_size"]
    return size, tuple(found["mean"]), tuple(found["std"]), found["crop_pct"], found["interpolation"]


def as_torchvision_resolves(model: str) -> tuple:
    found = models.get_model_weights(model).DEFAULT.transforms()
    (crop,), (resize,) = found.crop_size, found.resize_size
    return (3, crop, crop), tuple(found.mean), tuple(found.std), crop / resize, found.interpolation.value


@pytest.mark.parametrize(("name", "source"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_source_is_fed_as_its_library_feeds_it(name, source):
    library, _, model = source.partition(":")
    expected = as_timm_resolves(model) if library == "timm" else as_torchvision_resolves(model)
    ours = published_preprocessing(source)
    actual = (
        (ours.channels, ours.image_size, ours.image_size),
        ours.mean,
        ours.std,
        ours.eval_crop,
        ours.interpolation,
    )
    assert (actual == expected) != (source in EXCEPTIONS)


def test_the_table_is_not_all_alike():
    """Ten pairs are centred on a half, and neither crop nor filter is everywhere the same."""
    found = [published_preprocessing(source) for _, source in PAIRS if source.startswith("timm:")]
    assert {one.mean for one in found} == {(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)}
    assert len({one.eval_crop for one in found}) > 3 and len({one.interpolation for one in found}) == 2


@pytest.mark.parametrize("name", archs.names())
def test_sources_are_those_with_published_weights(name):
    timm = pytest.importorskip("timm", reason="timm is not installed: what it publishes is not known")
    for source in archs.lookup(name).peers:
        library, _, model = source.partition(":")
        if library == "timm":
            assert bool(timm.get_pretrained_cfg(model).has_weights) == (source in archs.lookup(name).sources)
        else:
            assert source in archs.lookup(name).sources


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("timm:seresnet18", r"publishes no weights of it \(it does of .*seresnet"),
        ("timm:resnet5000", "knows no model of that name"),
        ("timm:resnet50.nope", r"Invalid pretrained tag \(nope\)"),
        ("torchvision:resnet19", "has no weights of that name"),
        ("torchvision:fcn_resnet50", "not the weights of an image classifier"),
    ],
)
def test_what_nobody_publishes_is_told(source, told):
    if source.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ConfigError, match=told):
        published_preprocessing(source)


def test_classes_are_imagenet_s_in_its_order():
    names = published_classes("torchvision:resnet18")
    assert len(names) == 1000 and names[:2] == ["tench", "goldfish"]
    pytest.importorskip("timm", reason="timm is not installed")
    assert published_classes("timm:resnet18.a1_in1k") == names
    assert published_classes("timm:vit_small_patch16_224.augreg_in21k") is None
