"""The entry points on every layout: the same weights in one and two processes and after a resume, shards by command."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

TRAIN, SHARD, EVALUATE, PREDICT = "launch/train.py", "launch/shard.py", "launch/evaluate.py", "launch/predict.py"
RUN = ["--arch", "norm_free", "--image-size", "32", "--batch-size", "8", "--precision", "fp32", "--log.no-plots"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes; 13 + 4 + 3 pictures each in train/, val/ and test/."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for split, count in (("train", 13), ("val", 4), ("test", 3)):
        for label, colour in (("blue", (20, 30, 200)), ("red", (200, 30, 20))):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (48, 40), tuple(part + number for part in colour)).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def layouts(photos, launch) -> dict[str, Path]:
    """The photos in every layout with splits of its own."""
    base = photos.parent
    done = launch("make", photos, base / "shards", "--shard-size", "4KiB", script=SHARD)
    assert "40 images of 2 classes in" in done.stdout and f"train on them: --data.root {base / 'shards'}" in done.stdout
    found = {"folders": photos, "shards": base / "shards", "list": base / "list.tsv"}
    with found["list"].open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["file", "class", "set"])
        for path in sorted(photos.rglob("*.png")):
            split, label, _ = path.relative_to(photos).parts
            rows.writerow([path.relative_to(base), label, split])
    try:
        import datasets
    except ImportError:
        return found
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
    parts = {}
    for split in ("train", "val", "test"):
        paths = sorted((photos / split).rglob("*.png"))
        images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        labels = [int(path.parent.name == "red") for path in paths]
        parts[split] = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(base / "saved"))
    return found | {"saved": base / "saved"}


def digest(run: Path) -> str:
    """Of the weights' file without its metadata, which names the data."""
    from safetensors.numpy import load_file

    tensors = load_file(run / "model.safetensors")
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


def test_shards_are_made_verified_and_unpacked_by_command(launch, layouts, photos, tmp_path):
    assert "all shards are whole" in launch("verify", layouts["shards"], script=SHARD).stdout
    done = launch("unpack", layouts["shards"], tmp_path / "out", script=SHARD)
    assert "40 images in" in done.stdout
    for path in photos.rglob("*.png"):
        assert (tmp_path / "out" / path.relative_to(photos)).read_bytes() == path.read_bytes()
    refused = launch("make", photos, layouts["shards"], script=SHARD, code=2)
    assert "holds finished shards" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_layout_trains_the_same_weights(launch, layouts, tmp_path, rows, ranks):
    flags = [*RUN, "--epochs", "3", "--best", "loss", "--log.checkpoint-steps", "1", "--log.keep-checkpoints", "0"]
    found = {}
    for name, root in layouts.items():
        run = tmp_path / name
        launch(*flags, "--data.root", root, "--output", run, ranks=ranks)
        (row,) = rows(run, "test")
        assert row["test_images"] == 6 and rows(run, "epoch")[-1]["val_images"] == 8
        figures = [(one["train_loss"], one["val_loss"]) for one in rows(run, "epoch")]
        found[name] = digest(run), figures, row["test_loss"]
        checkpoint = sorted((run / "checkpoints").iterdir())[5]  # in the second epoch of four steps
        (run / "model.safetensors").unlink()
        launch("--resume", checkpoint, ranks=ranks)
        assert digest(run) == found[name][0], name
    assert len({json.dumps(one) for one in found.values()}) == 1


@pytest.mark.slow
def test_every_layout_is_evaluated_and_predicted(launch, layouts, tmp_path):
    run = tmp_path / "run"
    flags = ["--arch", "convnet_bn", *RUN[2:], "--epochs", "2"]  # other entry points do not know the network for tests
    launch(*flags, "--data.root", layouts["folders"], "--output", run, script=TRAIN)
    told = set()
    for root in layouts.values():
        for split in ("val", "test", "train"):
            done = launch("--checkpoint", run, "--data", root, "--split", split, script=EVALUATE)
            told.add((split, done.stdout.split("\n\n")[0].splitlines()[-1]))
    assert len(told) == 3, "each split is the same of every layout"
    table = tmp_path / "classes.csv"
    launch("--checkpoint", run, layouts["list"], "--output", table, script=PREDICT)
    assert len(table.read_text().splitlines()) == 41
