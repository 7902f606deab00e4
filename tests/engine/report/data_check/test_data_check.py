"""Findings in words, the sheet's captions and pixels, and the page."""

import io

import numpy as np
from PIL import Image

from engine.data.doctor.findings import Findings, Group, Member
from engine.data.preprocessing import Preprocessing
from engine.data.sources.source import Source, Split
from engine.report.data_check.page import page
from engine.report.data_check.sheet import caption, contact_sheet
from engine.report.data_check.told import lines

WANTED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), 1.0, "bilinear", 16)


def found(**changes) -> Findings:
    facts = {"near": True, "looked_at": {"train": 110, "val": 4}} | changes
    sizes = {"smallest": [10, 12], "median": [30, 40], "largest": [50, 60], "shorter_side": [10, 30, 50]}
    return Findings(["cat", "<b>"], {"train": [100, 10], "val": [4, 0]}, **facts, sizes=sizes, modes={"L": 1, "RGB": 3})


def leak() -> Group:
    return Group(
        [
            Member("train", 0, "cat", "/d/a.jpg"),
            Member("train", 1, "cat", "/d/b.jpg"),
            Member("val", 3, "<b>", "/d/c.jpg"),
        ],
        exact=True,
    )


def test_lines_of_a_set_in_order():
    told = lines(found(), image_size=8)
    assert told[0] == "images      110 train, 4 val; 2 classes"
    assert told[1] == "a class     train 10 to 100, 10:1; val 4 to 4, none of <b>"
    assert told[2].endswith("every image, near duplicates included")
    assert "10 x 12 to 50 x 60, median 30 x 40" in told[3] and "network" not in told[3]
    assert told[4].startswith("pixels      L 25.0 %, RGB 75.0 %")
    assert told[-1].startswith("all right")


def test_lines_of_what_is_wrong():
    ill = found(near=False, looked_at={"train": 20, "val": 4})
    ill.groups, ill.unreadable = [leak()], [("train", "/d/x.jpg", "the file is empty")]
    told = "\n".join(lines(ill, image_size=32, root="/d"))
    assert "20 of 110 train, 4 of 4 val images, no near duplicates" in told
    assert "half below 30 px, the network's is 32 px" in told
    assert "unreadable  1: x.jpg (the file is empty)" in told
    assert "copies      3 images are 1 pictures" in told and "a.jpg = c.jpg and 1 more" in told
    assert "leaks       1 of 4 val images are training images too" in told
    assert "a.jpg (cat) = c.jpg (<b>)" in told and "all right" not in told


def test_captions():
    assert caption(np.int64(1), ["cat", "dog"]) == ["dog"]
    assert caption(np.array([0.3, 0.7]), ["cat", "dog"]) == ["70% dog", "30% cat"]
    assert caption(np.array([0.999, 0.001]), ["cat", "dog"]) == ["cat"]


def test_the_sheet_undoes_the_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 96, 96)).astype(np.float32)
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (WANTED.mean, WANTED.std))
    sheet = contact_sheet((pixels / 255 - mean) / std, np.array([0, 1, 0]), ["cat", "dog \u0000"], WANTED)
    shown = np.asarray(Image.open(io.BytesIO(sheet)))
    np.testing.assert_array_equal(shown[8:104, 8:104], pixels[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(shown[8:104, 112:208], pixels[1].transpose(1, 2, 0))


def test_the_page_escapes_names_and_shows_groups(tmp_path):
    paths = []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}<i>.jpg"))
        Image.new("RGB", (20, 30), (50 * number, 9, 9)).save(paths[-1])
    train, val = Split(np.zeros(2, np.int64), paths[:2]), Split(np.zeros(3, np.int64), paths[2:])
    source = Source("made", ["cat", "<b>"], train, val, (0.5,) * 3, (0.2,) * 3, False, (0.5, 1.0), 1.0)
    ill = found()
    ill.groups = [Group([Member("train", 0, "cat", paths[0]), Member("val", 1, "<b>", paths[3])], exact=False)]
    ill.unreadable = [("train", "<x>", "why")]
    html = page(ill, source, "<set>", None, "")
    assert "leaks or contradictions" in html and "&lt;set&gt;" in html and "<b>:" not in html and "<x>" not in html
    assert html.count("data:image/png;base64") == 6  # the pair as a leak, as a contradiction and as alike
