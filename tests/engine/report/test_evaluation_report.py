"""evaluation.json, its picture, and the terminal's text."""

import json

import numpy as np
import pytest

from engine.report.evaluation_report import evaluation_text, most_confused, write_evaluation

MATRIX = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
CLASSES = ["cat", "dog", "owl"]


def write(folder, matrix=MATRIX, classes=CLASSES, **changes):
    total = int(matrix.sum())
    facts = {"loss": 0.5, "top1": float(np.trace(matrix) / max(1, total)), "top5": 1.0, "count": total} | changes
    return write_evaluation(folder, matrix, classes, **facts)


def test_the_figures(tmp_path):
    result = write(tmp_path)
    assert result["accuracy"] == 0.65
    assert (result["top5"], result["loss"], result["count"]) == (1.0, 0.5, 20)
    assert result["mean_class_accuracy"] == pytest.approx(0.65)
    assert result["per_class"] == [
        {"name": "cat", "recall": 0.8, "precision": 1.0, "support": 10, "predicted": 8},
        {"name": "dog", "recall": 0.5, "precision": 5 / 7, "support": 10, "predicted": 7},
        {"name": "owl", "recall": None, "precision": 0.0, "support": 0, "predicted": 5},
    ]
    assert result["most_confused"] == [
        {"truth": "dog", "predicted": "owl", "count": 5, "share": 0.5},
        {"truth": "cat", "predicted": "dog", "count": 2, "share": 0.2},
    ]


def test_the_files_hold_the_same(tmp_path):
    result = write(tmp_path / "deep" / "folder")
    assert json.loads((tmp_path / "deep" / "folder" / "evaluation.json").read_text()) == result
    assert (tmp_path / "deep" / "folder" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "deep" / "folder").iterdir())) == 2


def test_figures_that_contradict_the_matrix_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 20 images and count says 21"):
        write(tmp_path, count=21)
    with pytest.raises(ValueError, match=r"13 of 20 images right and top1 says 60"):
        write(tmp_path, top1=0.6)
    assert list(tmp_path.iterdir()) == []


def test_no_image_at_all(tmp_path):
    result = write(tmp_path, np.zeros((2, 2), int), ["a", "b"], loss=float("nan"), top5=0.0)
    assert result["mean_class_accuracy"] is None
    assert result["loss"] is None
    assert "0 images" in evaluation_text(result)


def test_pairs_come_most_first_and_ties_in_order():
    matrix = np.zeros((4, 4), int)
    matrix[3, 0], matrix[0, 3], matrix[1, 2] = 5, 2, 2
    pairs = most_confused(matrix, list("abcd"), limit=2)
    assert [(pair["truth"], pair["predicted"], pair["count"]) for pair in pairs] == [("d", "a", 5), ("a", "d", 2)]
    assert matrix[3, 0] == 5


def test_text_of_few_classes_has_each(tmp_path):
    text = evaluation_text(write(tmp_path))
    head, table, worst, pairs = text.split("\n\n")
    assert head == "accuracy 65.00 % · top-5 100.00 % · loss 0.5000 · 20 images, 3 classes"
    assert [line.split()[0] for line in table.splitlines()] == ["class", "cat", "dog", "owl"]
    assert table.splitlines()[3].split() == ["owl", "0", "–", "0.0", "%"]
    assert worst == "worst classes: dog 50.0 %, cat 80.0 %"
    assert pairs.splitlines()[2].split() == ["dog", "owl", "5", "50.0", "%"]


def test_text_of_many_classes_has_the_worst(tmp_path):
    matrix = np.diag([10] * 30)
    matrix[17, 17], matrix[17, 3] = 1, 9
    text = evaluation_text(write(tmp_path, matrix, [f"kind{n}" for n in range(30)]))
    assert "worst 10 of 30 classes" in text
    lines = text.splitlines()
    assert lines[lines.index("worst 10 of 30 classes") + 2].startswith("kind17")
    assert len(lines) < 25


def test_a_perfect_score_names_no_worst_class(tmp_path):
    text = evaluation_text(write(tmp_path, np.diag([4, 4]), ["a", "b"]))
    assert "worst" not in text
    assert "confused" not in text
