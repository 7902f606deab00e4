"""The confusion matrix as a picture."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from engine.report.confusion import LABELLED, NUMBERED, confusion_figure, confusion_png, enlarged, row_shares
from engine.report.plot_style import DARK, LIGHT


def made(count, images=20, seed=0):
    """A matrix of `count` classes, most images on the diagonal."""
    rng = np.random.default_rng(seed)
    matrix = np.zeros((count, count), np.int64)
    for row in range(count):
        right = int(rng.integers(images // 2, images + 1))
        matrix[row, row] = right
        np.add.at(matrix[row], rng.integers(0, count, images - right), 1)
    return matrix


def test_rows_are_shares_of_the_truth():
    shares = row_shares(np.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(shares, [[0.75, 0.25], [np.nan, np.nan]])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("count", [1, 2, NUMBERED, LABELLED, LABELLED + 1])
def test_any_number_of_classes(count, theme):
    picture = Image.open(io.BytesIO(confusion_png(made(count), [f"class {n}" for n in range(count)], theme)))
    assert min(picture.size) >= 700


def test_a_thousand_classes_have_a_pixel_each():
    figure = confusion_figure(made(1000, 8), [f"n{n:08d}" for n in range(1000)])
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert min(box.width, box.height) >= 1000
    assert len(figure.axes[0].get_xticklabels()) < 50


def test_numbers_and_names_only_where_they_fit():
    few = confusion_figure(made(3), ["a", "b", "c"])
    assert [label.get_text() for label in few.axes[0].get_yticklabels()] == ["a", "b", "c"]
    shown = {text.get_text() for text in few.axes[0].texts}
    assert any(text.isdecimal() for text in shown)
    many = confusion_figure(made(NUMBERED + 1), [str(n) for n in range(NUMBERED + 1)])
    assert not any(text.get_text().isdecimal() for text in many.axes[0].texts)


def test_the_bars_are_each_classs_accuracy():
    figure = confusion_figure(np.array([[3, 1], [2, 8]]), ["cat", "dog"])
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([75, 80])
    assert "78.57%" in figure.axes[0].texts[1].get_text() or any("78.57" in t.get_text() for t in figure.axes[0].texts)


def test_a_class_without_images_is_told_from_one_that_is_always_wrong():
    figure = confusion_figure(np.array([[0, 4], [0, 0]]), ["wrong", "empty"])
    notes = [text.get_text() for text in figure.axes[1].texts]
    assert notes == ["0.0", "no images"]


@pytest.mark.parametrize("name", ["$\\frac{1}$", "a_b^c$", "日本語", "naïve", "x" * 300, "", "\\", "<b>"])
def test_any_class_name_can_be_drawn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_png(made(2), [name, "other"])


def test_a_lone_confusion_is_enlarged_and_nothing_is_lost():
    shares = np.zeros((9, 9))
    shares[4, 6], shares[8, 0] = 0.2, 0.5
    wide = enlarged(shares, 1)
    assert wide.shape == shares.shape
    assert (wide == 0.2).sum() == 9
    assert (wide == 0.5).sum() == 4  # in a corner
    np.testing.assert_array_equal(enlarged(shares, 0), shares)


def test_a_single_confusion_is_seen():
    matrix = np.diag([10_000] * 10)
    clean = Image.open(io.BytesIO(confusion_png(matrix, list("0123456789")))).convert("RGB")
    matrix[2, 7] = 1
    dirty = Image.open(io.BytesIO(confusion_png(matrix, list("0123456789")))).convert("RGB")
    changed = np.abs(np.asarray(clean, int) - np.asarray(dirty, int)).max(axis=2) > 20
    assert changed.sum() > 2000


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3), int), r"2 classes has the shape \(2, 2\), not \(2, 3\)"),
        (np.zeros((3, 3), int), r"not \(3, 3\)"),
        (np.zeros((2, 2)), "whole numbers"),
        (np.array([[1, -1], [0, 0]]), "whole numbers from 0"),
    ],
)
def test_what_is_no_table_of_counts_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        confusion_figure(matrix, ["a", "b"])
