"""Prediction in Python: the same logits as the evaluation, order kept, files that are no pictures, features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import archs
from engine.config import ConfigError
from engine.step.finetune import last_layer
from engine.use import evaluation
from engine.use.predict import ACCEPTED, Predictor, load, probabilities_of, split_of
from engine.use.weights import read_weights

from .conftest import CLASSES, PIXELS, make_pictures, write_bomb, write_weights

HEADS = ("alexnet", "googlenet", "squeezenet1_1", "nin", "vit_s16")
"""Networks with heads of each kind; all others are looked at in the slow run."""


def logits_of(predictor: Predictor, paths, **settings) -> np.ndarray:
    return np.concatenate([answers.logits for answers in predictor.answers(split_of(paths), **settings)])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """For what is refused before a picture is looked at."""
    return load(write_weights(tmp_path_factory.mktemp("weights") / "model.safetensors", "squeezenet1_1"))


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_logits_are_the_evaluation_s_bit_for_bit(weights, tmp_path, evaluated, precision):
    paths = []
    for split in ("train", "val"):
        for name in CLASSES:
            paths += [str(path) for path in make_pictures(tmp_path / "data" / split / name, 5) if split == "val"]
    (tmp_path / "data" / "val" / "rose" / "02.jpg").write_bytes(b"no picture")
    checkpoint = weights()
    config = evaluation.EvaluateConfig(checkpoint, data=str(tmp_path / "data"), batch_size=4, precision=precision)
    evaluation.run_evaluation(config)
    predictor = load(checkpoint, batch_size=4, precision=precision)
    found = logits_of(predictor, paths)
    bad = paths.index(str(tmp_path / "data" / "val" / "rose" / "02.jpg"))
    assert np.isnan(found[bad]).all()
    expected = torch.cat(evaluated).numpy()
    assert np.array_equal(np.delete(found, bad, 0), np.delete(expected, bad, 0))


def test_it_is_the_network_on_the_pixels_that_the_weights_expect(weights, pictures):
    checkpoint = weights()
    theirs = v2.Compose(
        [
            v2.Resize(int(64 / 0.9), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(64),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(PIXELS.mean, PIXELS.std),
        ]
    )
    model = archs.build("resnet18", 3).eval()
    model.load_state_dict(read_weights(checkpoint).tensors)
    with torch.no_grad():
        expected = model(torch.stack([theirs(Image.open(path)) for path in pictures]))
    found = logits_of(load(checkpoint, precision="fp32"), pictures)
    assert np.abs(found - expected.numpy()).max() < 0.1 * np.abs(expected.numpy()).max()
    assert (found.argmax(1) == expected.numpy().argmax(1)).all()


def test_order_is_kept_and_classes_are_named(weights, pictures):
    predictor = load(weights(), precision="fp32", batch_size=3)
    shuffled = [pictures[place] for place in (7, 2, 9, 0, 2)]
    found = predictor.predict(shuffled, top_k=2)
    assert [one.path for one in found] == [str(path) for path in shuffled]
    assert found[1] == found[4]
    shares = probabilities_of(logits_of(predictor, shuffled))
    for prediction, row in zip(found, shares, strict=True):
        assert prediction.classes == [CLASSES[label] for label in np.argsort(-row)[:2]]
        assert prediction.probabilities == sorted(row.tolist(), reverse=True)[:2]
        assert prediction.reason is None


def test_unlikely_classes_are_left_out(weights, pictures):
    found = load(weights(), precision="fp32").predict(pictures, threshold=0.4)
    assert all(share >= 0.4 for one in found for share in one.probabilities)
    everything = load(weights(), precision="fp32").predict(pictures)
    kept = [[share for share in one.probabilities if share >= 0.4] for one in everything]
    assert [one.probabilities for one in found] == kept


def test_arrays_of_any_sizes_are_predicted_as_their_files(weights, tmp_path):
    paths = []
    for path in make_pictures(tmp_path / "pictures", 4):
        paths.append(path.with_suffix(".png"))
        Image.open(path).save(paths[-1])
    predictor = load(weights(), precision="fp32")
    arrays = [np.asarray(Image.open(path)) for path in paths]
    assert np.array_equal(logits_of(predictor, arrays), logits_of(predictor, paths))
    assert predictor.predict(arrays[0])[0].path is None
    grey = np.asarray(Image.open(paths[0]).convert("L"))
    assert predictor.predict(grey)[0].classes


@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        ([], "no pictures"),
        ([np.zeros((3, 4, 4), np.uint8)], r"array of uint8 \[3, 4, 4\]: predict takes paths, or uint8 arrays"),
        ([np.zeros((4, 4, 3))], r"float64 \[4, 4, 3\]"),
        ([np.zeros((4, 4, 3), np.uint8), "a.jpg"], "cannot be mixed"),
    ],
)
def test_what_is_no_picture_is_told(weights, pictures, told):
    with pytest.raises(ConfigError, match=told):
        load(weights()).predict(pictures)


@pytest.mark.parametrize(
    ("pictures", "error", "told"),
    [
        (None, TypeError, "pictures are of type NoneType: "),
        (5, TypeError, "pictures are of type int: "),
        (b"a.jpg", TypeError, "pictures are of type bytes: "),
        ({"a.jpg": 1}, TypeError, "pictures are of type dict: "),
        ([None], TypeError, "picture 0 is of type NoneType: "),
        (["a.jpg", 5], TypeError, "picture 1 is of type int: "),
        ([Image.new("RGB", (4, 4))], TypeError, "picture 0 is of type Image: "),
        (torch.zeros(1, 4, 4, 3), TypeError, "picture 0 is of type Tensor: "),
        ("", ConfigError, "picture 0 is an empty path"),
        (np.array([None, 1]), ConfigError, r"picture 0 is an array of object \[2\]"),
        (np.array(["a.jpg"]), ConfigError, "picture 0 is an array of <U5"),
    ],
)
def test_what_is_neither_path_nor_array_is_told_with_what_is_accepted(predictor, pictures, error, told):
    with pytest.raises(error) as caught:
        predictor.predict(pictures)
    assert str(caught.value).startswith(told.replace("\\", "")) and str(caught.value).endswith(ACCEPTED)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"top_k": 0}, "top_k must be"),
        ({"threshold": 2}, "threshold must be"),
        ({"tta": "flop"}, "tta must be none"),
    ],
)
def test_settings_that_cannot_be_meant_are_told(predictor, settings, told):
    with pytest.raises(ConfigError, match=told):
        predictor.predict("a.jpg", **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 0}, "--batch-size must be a number of pictures from 1 on, not 0"),
        ({"batch_size": "8"}, "--batch-size must be a number of pictures from 1 on, not '8'"),
        ({"precision": "fp8"}, "precision must be auto, fp32, bf16, fp16, not 'fp8'"),
    ],
)
def test_a_predictor_that_cannot_be_meant_is_told(weights, settings, told):
    with pytest.raises(ConfigError, match=told):
        load(weights(network="squeezenet1_1"), **settings)


def test_files_that_are_no_pictures_have_a_reason_and_the_others_their_classes(weights, pictures, tmp_path):
    bomb = tmp_path / "bomb.png"
    write_bomb(bomb)
    video, empty, cut = (tmp_path / name for name in ("film.mp4", "empty.jpg", "cut.jpg"))
    video.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(400))
    empty.touch()
    cut.write_bytes(pictures[1].read_bytes()[:600])
    tiny = tmp_path / "tiny.png"
    Image.new("RGB", (1, 1), (200, 10, 10)).save(tiny)
    predictor = load(weights(), precision="fp32", batch_size=4)
    mixed = [pictures[0], bomb, video, pictures[1], empty, tmp_path / "gone.jpg", tiny, cut, pictures[2]]
    found = predictor.predict(mixed)
    reasons = {one.path.rpartition("/")[2]: one.reason for one in found if one.reason}
    assert reasons.keys() == {"bomb.png", "film.mp4", "empty.jpg", "gone.jpg", "cut.jpg"}
    assert reasons["empty.jpg"] == "the file is empty" and reasons["gone.jpg"] == "No such file or directory"
    assert "178956970 pixels" in reasons["bomb.png"]
    for one in found:
        assert bool(one.classes) != bool(one.reason)
    good = predictor.predict([pictures[0], pictures[1], tiny, pictures[2]])
    for one, other in zip([one for one in found if not one.reason], good, strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)


def test_nothing_but_bad_files(weights, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%PDF-1.7")
    (only,) = load(weights()).predict(tmp_path / "a.jpg")
    assert only.reason == "no image format that Pillow knows" and not only.classes


def test_weights_that_hold_no_numbers_are_told(weights, pictures):
    network = load(weights(), precision="fp32", batch_size=4)
    with torch.no_grad():
        next(network.model.head.parameters())[0].fill_(float("nan"))
    for found in network.predict(pictures[:2]):
        assert not found.classes and "no numbers" in found.reason


def test_flip_is_the_mean_over_both_sides(weights, pictures, tmp_path):
    whole = replace(PIXELS, eval_crop=1.0)  # else the crop of the mirrored picture may lie a pixel further
    predictor = load(weights(preprocessing=whole.to_json()), precision="fp32")
    mirrored = []
    for path in pictures[:3]:  # without a loss, and cut the same on both sides
        pixels = np.asarray(Image.open(path).resize((64, 64)))
        mirrored.append((pixels, pixels[:, ::-1].copy()))
    plain, other = (logits_of(predictor, [pair[side] for pair in mirrored]) for side in (0, 1))
    both = logits_of(predictor, [pair[0] for pair in mirrored], tta="flip")
    np.testing.assert_allclose(both, (plain + other) / 2, rtol=1e-3, atol=1e-3)
    assert not np.allclose(both, plain, atol=1e-3)


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "vit_s16"])
def test_features_are_what_the_last_layer_sees(weights, pictures, arch):
    predictor = load(weights(network=arch), precision="fp32")
    (answers,) = predictor.answers(split_of(pictures), features=True)
    layer = last_layer(predictor.model)
    assert answers.features.shape[0] == len(pictures) and answers.features.ndim == 2
    if isinstance(layer, torch.nn.Linear):
        with torch.no_grad():
            again = layer(torch.from_numpy(answers.features)).numpy()
        np.testing.assert_allclose(again, answers.logits, rtol=1e-5, atol=1e-5)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(
    "arch", [pytest.param(name, marks=() if name in HEADS else pytest.mark.slow) for name in archs.names()]
)
def test_every_network_has_a_last_layer(arch):
    with torch.device("meta"):
        model = archs.build(arch, 7)
    assert len(last_layer(model).weight) == 7
