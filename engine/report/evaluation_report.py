"""What an evaluation found, as evaluation.json, a picture and lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.report.confusion import checked, confusion_png, row_shares
from engine.runs.door import atomic_file, writing
from engine.runs.records import finite
from engine.runs.text_table import clip, text_table
from engine.runs.wording import number, percent

PAIRS = 20
"""Most confused pairs in evaluation.json."""
TABLED = 20
"""Up to this many classes the terminal shows each."""
WORST = 10
"""Classes and pairs that the terminal shows of more."""


def write_evaluation(
    out_dir: Path,
    confusion: np.ndarray,
    classes: Sequence[str],
    loss: float,
    top1: float,
    top5: float,
    count: int,
    split: str = "",
) -> dict[str, Any]:
    """Write `out_dir`/evaluation.json and confusion.png (the folder is made) and return what the JSON holds.

    confusion  int64 [K, K], rows truth, columns prediction
    classes    K names
    loss       mean over the images; top1 and top5 shares of them, 0..1
    count      images
    split      which of the data's; empty where that is not known

    The result: split; accuracy, top5, loss, count; mean_class_accuracy (over the classes that have images); per_class,
    K of {name, recall, precision, support, predicted}, where recall is None without images and precision None without
    predictions; most_confused, at most PAIRS of {truth, predicted, count, share of the truth's images}, most first.

    Raises ValueError where the matrix is not K by K counts, or does not agree with `count` and `top1`.
    """
    matrix = checked(confusion, classes)
    total, right = int(matrix.sum()), int(np.trace(matrix))
    if total != count:
        raise ValueError(f"the confusion matrix holds {total} images and count says {count}")
    if abs(right / max(1, total) - top1) > 1e-4:
        raise ValueError(f"the confusion matrix has {right} of {total} images right and top1 says {top1:.4%}")
    recalls = np.diagonal(row_shares(matrix))
    result = finite(
        {
            "split": split,
            "accuracy": float(top1),
            "top5": float(top5),
            "loss": float(loss),
            "count": total,
            "mean_class_accuracy": float(np.nanmean(recalls)) if total else None,
            "per_class": per_class(matrix, classes),
            "most_confused": most_confused(matrix, classes),
        }
    )
    out_dir = Path(out_dir)
    with writing(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(out_dir / "evaluation.json") as temporary:
        temporary.write_text(
            json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
        )
    with atomic_file(out_dir / "confusion.png") as temporary:
        temporary.write_bytes(confusion_png(matrix, classes))
    return result


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Recall, precision and counts of each class, in the order of `classes`."""
    right, support, predicted = np.diagonal(matrix).tolist(), matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    return [
        {
            "name": str(name),
            "recall": hits / images if images else None,
            "precision": hits / guesses if guesses else None,
            "support": images,
            "predicted": guesses,
        }
        for name, hits, images, guesses in zip(classes, right, support, predicted, strict=True)
    ]


def most_confused(matrix: np.ndarray, classes: Sequence[str], limit: int = PAIRS) -> list[dict[str, Any]]:
    """The `limit` pairs (truth, prediction) of different classes with most images; of equals the first in order."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = []
    for row, col in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, col] > 0:
            pairs.append(
                {
                    "truth": str(classes[row]),
                    "predicted": str(classes[col]),
                    "count": int(wrong[row, col]),
                    "share": float(wrong[row, col] / matrix[row].sum()),
                }
            )
    return pairs


def evaluation_text(result: dict[str, Any]) -> str:
    """`write_evaluation`'s result in words: overall, classes (each up to TABLED, else the WORST), confused pairs."""
    classes = result["per_class"]
    judged = sorted((row for row in classes if row["recall"] is not None), key=lambda row: row["recall"])
    of = f"{result['split']} " if result.get("split") else ""
    parts = [
        f"{of}accuracy {percent(result['accuracy'])} · top-5 {percent(result['top5'])} · "
        f"loss {number(result['loss'], 4)} · {result['count']:,} images, {len(classes):,} classes"
    ]
    if len(classes) <= TABLED:
        parts.append(class_table(classes))
        worst = ", ".join(f"{clip(row['name'])} {percent(row['recall'], 1)}" for row in judged[:3] if row["recall"] < 1)
        parts += [f"worst classes: {worst}"] if worst else []
    elif judged:
        parts.append(f"worst {min(WORST, len(judged))} of {len(classes):,} classes\n{class_table(judged[:WORST])}")
    pairs = result["most_confused"][:WORST]
    if pairs:
        rows = [(pair["truth"], pair["predicted"], str(pair["count"]), percent(pair["share"], 1)) for pair in pairs]
        parts.append("most confused\n" + text_table(("truth", "taken for", "images", "of its images"), rows, left=2))
    return "\n\n".join(parts)


def class_table(classes: Sequence[dict[str, Any]]) -> str:
    """`per_class` rows for the terminal."""
    rows = [
        (row["name"], str(row["support"]), percent(row["recall"], 1), percent(row["precision"], 1)) for row in classes
    ]
    return text_table(("class", "images", "recall", "precision"), rows)
