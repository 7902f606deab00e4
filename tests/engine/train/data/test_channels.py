"""Runs on grey images: trained, resumed, evaluated, predicted, exported, begun from coloured weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config import ConfigError
from engine.runs.history import read_history
from engine.use.evaluation import evaluate
from engine.use.export.graph import RawGraph
from engine.use.predict import load
from engine.use.weights import read_weights

GREY = ("--data.channels", "1")


def logits_of(run, paths):
    from engine.use.predict import split_of

    return next(load(run, precision="fp32").answers(split_of(paths))).logits


@pytest.fixture
def greys(tmp_path):
    """Pictures without colour, as files of one channel and of three."""
    paths = []
    for number in range(6):
        grey = np.random.default_rng(number).integers(0, 256, (36, 40), dtype=np.uint8)
        paths.append(tmp_path / f"grey{number}.png")
        Image.fromarray(grey if number % 2 else np.stack([grey] * 3, axis=2)).save(paths[-1])
    return paths


def test_a_grey_run_is_of_use(run_here, resume, photos, weights, tmp_path):
    run_here(*GREY, "--epochs", "2", "--augment", "medium")
    network = read_weights(tmp_path / "run")
    assert network.options == {"in_channels": 1} and network.preprocessing.channels == 1
    assert 1 in {one.shape[1] for key, one in network.tensors.items() if key.startswith("stem.") and one.ndim == 4}
    run_here(*GREY, "--epochs", "1", "--augment", "medium", "--output", tmp_path / "half")
    run_here("--resume", tmp_path / "half", "--epochs", "2", base=False)
    assert weights("half") == weights()
    best = max(row["val_accuracy"] for row in read_history(tmp_path / "run").epochs)
    assert evaluate(tmp_path / "run", precision="fp32")["accuracy"] == pytest.approx(best, abs=1e-6)
    pictures = sorted(map(str, (photos / "val").rglob("*.jpg")))
    pixels = [np.asarray(Image.open(path)) for path in pictures]
    graph = RawGraph(network.build(), network.preprocessing)
    with torch.no_grad():
        exported = graph(torch.from_numpy(np.stack(pixels)))[1].numpy()
    np.testing.assert_allclose(exported, logits_of(tmp_path / "run", pictures), atol=0.05)
    with pytest.raises(SystemExit, match="2"):  # its mean is of one channel
        run_here("--resume", tmp_path / "half", "--data.channels", "3", "--epochs", "3", base=False)


def test_a_run_begins_from_weights_of_other_channels(run_here, greys, tmp_path):
    """With a learning rate of nothing a grey picture keeps its logits, whichever way the stem was converted."""
    still = ("--lr", "1e-30", "--optimizer", "sgd", "--finetune", "head", "--epochs", "1", "--data.flip", "off")
    shared = ("--data.mean", *["0.5"] * 3, "--data.std", *["0.25"] * 3)
    run_here(*shared)
    done = run_here(*GREY, *still, "--pretrained", tmp_path / "run", "--output", tmp_path / "grey")
    assert "summed for grey images" in done.out
    np.testing.assert_allclose(logits_of(tmp_path / "grey", greys), logits_of(tmp_path / "run", greys), atol=1e-4)
    done = run_here(*still, "--pretrained", tmp_path / "grey", "--output", tmp_path / "back")
    assert "spread over three colours" in done.out
    np.testing.assert_allclose(logits_of(tmp_path / "back", greys), logits_of(tmp_path / "grey", greys), atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--arch", "torchvision:resnet18"), "torchvision:resnet18 is for coloured images"),
        (("--data.mean", "0.5", "0.5", "0.5"), "--data.mean needs a number for each of --data.channels 1, not 3"),
    ],
    ids=["torchvision", "mean"],
)
def test_what_cannot_be_grey_is_told(run_here, flags, told):
    try:
        assert told in run_here(*GREY, *flags, code=2).err
    except (ConfigError, SystemExit) as error:  # what the parser itself refuses
        assert "--data.mean" in flags and isinstance(error, SystemExit) and error.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [("--fused", "on"), ("--compile",), ("--optim.sam", "0.05"), ("--arch", "timm:resnet10t")]
)
def test_grey_with(run_here, flags):
    run_here(*GREY, *flags)


def test_a_run_keeps_16_bits(run_here, photos, tmp_path):
    for path in sorted(photos.rglob("*.jpg")):
        seed = int(path.stem) + 100 * (path.parent.name == "dog")
        values = np.random.default_rng(seed).integers(0, 65536, (36, 40), dtype=np.uint16)
        Image.fromarray(values).save(path.with_suffix(".png"))
        path.unlink()
    done = run_here(*GREY)
    assert "images of 16 bits a colour: all of them are kept" in done.out
    assert read_weights(tmp_path / "run").preprocessing.bits == 16
    best = max(row["val_accuracy"] for row in read_history(tmp_path / "run").epochs)
    assert evaluate(tmp_path / "run", precision="fp32")["accuracy"] == pytest.approx(best, abs=1e-6)
