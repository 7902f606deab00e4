"""What an epoch came to, in a line for the terminal."""

from __future__ import annotations

from typing import Any


def epoch_line(row: dict[str, Any], epochs: int, best_by: str, score: float) -> str:
    """An epoch's row of metrics.jsonl; what weights are chosen by is named where it is not the accuracy or the loss."""
    judged = f"  {best_by.replace('_', ' ')} {score:6.2%}" if best_by in ("balanced", "macro_f1") else ""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f"  train {row['train_accuracy']:6.2%} loss {row['train_loss']:.4f}"
        f"  val {row['val_accuracy']:6.2%} loss {row['val_loss']:.4f}{judged}"
        f"  {row['images_per_second']:.0f} img/s  {row['seconds']:.1f} s{'  best' if row['best'] else ''}"
    )
