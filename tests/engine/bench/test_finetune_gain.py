"""What fine-tuning gains: the parts that are trained on, the margins that are taken of rows, rows of other settings."""

import json
from statistics import mean

import numpy as np
import pytest
from PIL import Image

from engine.bench import finetune_gain
from engine.bench.finetune_gain import RESULT, SEEDS, margins, part, read_rows, write
from engine.data.sources.open import open_source
from engine.data.sources.source import Source, Split


@pytest.fixture
def photographs(tmp_path) -> Source:
    for split, count in (("train", 9), ("val", 4)):
        for name in ("cat", "dog", "ship"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.jpg")
    return open_source("folder", tmp_path / "pictures")


@pytest.fixture
def drawings() -> Source:
    splits = []
    for count in (9, 4):
        labels = np.repeat(np.arange(3), count)
        splits.append(
            Split(labels, arrays=np.broadcast_to(labels[:, None, None], (len(labels), 8, 8)).astype(np.uint8))
        )
    return Source("drawings", ["cat", "dog", "ship"], *splits, (0.5,) * 3, (0.5,) * 3, False, (0.7, 1.0), 1.0)


@pytest.mark.parametrize("kind", ["photographs", "drawings"])
def test_a_part_has_so_many_pictures_of_its_classes_alone(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    made = [part(source, tmp_path / str(place), ["cat", "ship"], 3, seed) for place, seed in enumerate((0, 0, 1))]
    names = [sorted(path.relative_to(at).as_posix() for path in at.rglob("*.*")) for at in made]
    assert names[0] == names[1] != names[2]
    for name in ("cat", "ship"):
        assert [len(list((made[0] / split / name).iterdir())) for split in ("train", "val")] == [3, 4]
    assert not (made[0] / "train" / "dog").exists()
    again = open_source("folder", made[0])
    assert again.classes == ["cat", "ship"] and len(again.train) == 6
    more = part(source, tmp_path / "more", ["cat"], 3, 0, passes=4)
    of_cats = list((more / "train" / "cat").iterdir())
    assert len(of_cats) == 12 and len({path.read_bytes() for path in of_cats}) == (3 if kind == "photographs" else 1)
    assert len(list((more / "val" / "cat").iterdir())) == 4
    if kind == "drawings":
        ships = [np.asarray(Image.open(path)) for path in (made[0] / "train" / "ship").iterdir()]
        assert all((ship == 2).all() for ship in ships)


def test_digits_are_not_mirrored(drawings, photographs):
    assert "--data.flip" in finetune_gain.as_drawn(drawings) and not finetune_gain.as_drawn(photographs)


def test_margins_are_between_the_best_rates():
    rows = [
        {"pictures_a_class": 10, "way": way, "lr": lr, "mean": mean}
        for way, lr, mean in (
            ("from scratch", 1, 40.0),
            ("from scratch", 2, 50.0),
            ("head", 1, 62.0),
            ("head", 2, 10.0),
        )
    ]
    assert margins(rows) == {"10": {"head": 12.0}}
    assert margins(rows[2:]) == {}, "there is nothing to compare with"


def test_rows_of_other_settings_are_not_gone_on_with(monkeypatch, tmp_path):
    monkeypatch.setattr(finetune_gain, "RESULT", tmp_path / "use" / "finetune.json")
    rows = [{"pictures_a_class": 10, "way": "head", "lr": 0.01, "mean": 50.0}]
    write("mnist", {"arch": "a"}, rows)
    write("flowers", {"arch": "a"}, [])
    assert read_rows("mnist", {"arch": "a"}) == rows and read_rows("flowers", {"arch": "a"}) == []
    assert read_rows("mnist", {"arch": "b"}) == [], "another network's"


def test_what_is_published_is_of_its_rows_and_says_that_it_pays():
    """Each network met fewer pictures of other classes; equal steps for all ways."""
    for document in json.loads(RESULT.read_text(encoding="utf-8")).values():
        rows = document["rows"]
        assert document["margins"] == margins(rows)
        assert not set(document["settings"]["held_out"]) & set(
            document["settings"].get("before", {}).get("classes", [])
        )
        for shots in {row["pictures_a_class"] for row in rows}:
            assert len({row["steps"] for row in rows if row["pictures_a_class"] == shots}) == 1
        assert all(len(row["val_accuracy"]) == len(SEEDS) for row in rows)
        assert all(row["mean"] == round(mean(row["val_accuracy"]), 2) for row in rows)
        assert max(found.get("head", 0) for found in document["margins"].values()) > 10
