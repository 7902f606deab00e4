"""The confusion matrix as a picture, from two classes to a thousand, with every class's accuracy beside its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.report.plot_style import LIGHT, Theme, dress, head, new_figure, plain_text, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED = 20
"""Up to this many classes every cell shows its percentage."""
LABELLED = 60
"""Up to this many classes every row and column shows its name."""
LONGEST = 24
"""Letters of a class name in the picture."""


def checked(confusion: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """`confusion` as int64 [K, K]. Raises ValueError where it is no table of counts for `classes` (K names)."""
    matrix = np.asarray(confusion)
    shape = (len(classes), len(classes))
    if matrix.shape != shape:
        raise ValueError(f"a confusion matrix of {len(classes)} classes has the shape {shape}, not {matrix.shape}")
    if not np.issubdtype(matrix.dtype, np.integer) or (matrix < 0).any():
        raise ValueError(f"a confusion matrix counts images: whole numbers from 0, not {matrix.dtype} values")
    return matrix.astype(np.int64)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """float64 [K, K]: each row ÷ its sum; NaN in the rows of classes without an image."""
    support = confusion.sum(axis=1, keepdims=True)
    return np.divide(confusion, support, out=np.full(confusion.shape, np.nan), where=support > 0)


def confusion_figure(confusion: np.ndarray, classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Heat map of the share of each true class (row) by predicted class (column), and a bar of accuracy a row.

    confusion  int [K, K], rows truth, columns prediction
    classes    K names

    The colour follows the square root of the share, so that a confusion of 1 % can be seen. Names and numbers are
    left out where they do not fit. Raises ValueError as `checked` does.
    """
    matrix = checked(confusion, classes)
    count, shares = len(classes), row_shares(matrix)
    height = float(np.clip(2.6 + 0.24 * count, 4.4, 10.5))
    figure = new_figure(theme, (height + 2.9, height))
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4.2, 1))
    _heat_map(figure, heat, shares, theme)
    if count <= NUMBERED:
        _cell_numbers(heat, shares, theme)
    _accuracy_bars(bars, np.diagonal(shares), theme)
    _class_labels(heat, classes, theme)
    total = int(matrix.sum())
    told = f"{np.trace(matrix) / total:.2%} of {total:,} images right" if total else "no images"
    told += " · rows: truth, columns: prediction · a row sums to 100 %"
    head(heat, theme, "Confusion", told + (" · cells enlarged" if _radius(count) else ""))
    return figure


def confusion_png(confusion: np.ndarray, classes: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """`confusion_figure` as a PNG."""
    return to_png(confusion_figure(confusion, classes, theme))


def enlarged(shares: np.ndarray, radius: int) -> np.ndarray:
    """Each cell of [K, K] spread over its neighbours up to `radius` away, the largest winning.

    Of a thousand classes a cell is about one pixel, and a lone confusion would not be seen.
    """
    count = len(shares)
    padded = np.pad(shares, radius, constant_values=np.nan)
    windows = [
        padded[row : row + count, col : col + count] for row in range(2 * radius + 1) for col in range(2 * radius + 1)
    ]
    return np.fmax.reduce(windows)


def _radius(count: int) -> int:
    return count // 400


def _heat_map(figure: Figure, axes: Axes, shares: np.ndarray, theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    gradient = LinearSegmentedColormap.from_list("heat", theme.heat[1:])
    colours = gradient.with_extremes(under=theme.heat[0], bad=theme.grid)  # one confusion stands out from none
    shown = enlarged(shares, _radius(len(shares)))
    picture = axes.imshow(shown, cmap=colours, norm=PowerNorm(0.5, 1e-6, 1), aspect="auto", interpolation="nearest")
    dress(axes, theme, x="prediction", y="truth")
    axes.grid(False)
    count = len(shares)
    if count <= LABELLED:
        edges = np.arange(count + 1) - 0.5
        axes.hlines(edges, -0.5, count - 0.5, color=theme.grid, lw=0.6)
        axes.vlines(edges, -0.5, count - 0.5, color=theme.grid, lw=0.6)
    for spine in axes.spines.values():
        spine.set(visible=True, color=theme.grid)
    key = figure.colorbar(picture, ax=figure.axes, shrink=0.5, anchor=(0, 1), aspect=22, pad=0.02)
    key.set_ticks([0.01, 0.1, 0.25, 0.5, 1])
    key.ax.set_yticklabels(["1 %", "10 %", "25 %", "50 %", "100 %"], color=theme.muted, fontsize=8)
    key.ax.tick_params(length=0)
    key.outline.set_visible(False)


def _cell_numbers(axes: Axes, shares: np.ndarray, theme: Theme) -> None:
    size = float(np.clip(110 / len(shares), 6.0, 9.5))
    for (row, col), share in np.ndenumerate(shares):
        if not share > 0:  # NaN has no number either
            continue
        dark_cell = (share**0.5 > 0.55) == (theme is LIGHT)
        text = f"{100 * share:.0f}" if share >= 0.0095 else "<1"
        colour = "#ffffff" if dark_cell else "#10202e"
        if theme is not LIGHT and share**0.5 <= 0.55:
            colour = theme.text
        axes.text(col, row, text, ha="center", va="center", fontsize=size, color=colour)


def _accuracy_bars(axes: Axes, accuracies: np.ndarray, theme: Theme) -> None:
    dress(axes, theme, x="accuracy, %")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=theme.grid, lw=0.8)
    rows, values = np.arange(len(accuracies)), 100 * np.nan_to_num(accuracies)
    gap = 0.3 if len(rows) <= LABELLED else 0.0
    axes.barh(rows, values, height=1 - gap, color=theme.train, lw=0, antialiased=gap > 0)
    for row in rows if len(rows) <= LABELLED else ():
        unknown = np.isnan(accuracies[row])
        axes.annotate(
            "no images" if unknown else f"{values[row]:.1f}",
            (values[row], row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=theme.muted,
            annotation_clip=False,
        )
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100])
    axes.tick_params(axis="y", labelleft=False)
    axes.spines["bottom"].set_visible(False)


def _class_labels(axes: Axes, classes: Sequence[str], theme: Theme) -> None:
    if len(classes) > LABELLED:
        axes.set_xlabel("prediction (class number)", color=theme.muted, fontsize=9.5)
        axes.set_ylabel("truth (class number)", color=theme.muted, fontsize=9.5)
        return
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
    size = float(np.clip(200 / len(classes), 6.5, 9.5))
    upright = max(map(len, names)) * len(classes) > 90
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    plain_text([*axes.get_xticklabels(), *axes.get_yticklabels()])
