"""The charts of a run: accuracy, loss, learning rate and throughput here, memory and activity beside.

A chart is a function of (History, Theme) that gives a Figure, or None where the run has nothing to show in it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.report.machine_plots import activity, memory
from engine.report.plot_style import LIGHT, Theme, dress, head, markers, new_figure, to_png
from engine.runs.door import atomic_file, writing
from engine.runs.history import History, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy(history: History, theme: Theme) -> Figure | None:
    """Train and val accuracy in percent by epoch, the best marked; before the first epoch ends, by step."""
    figure, axes = _by_epoch(history, theme, "accuracy in %", rising=True)
    drawn = _step_line(axes, history, "accuracy", theme, scale=100)
    drawn |= _epoch_lines(axes, history, "accuracy", theme, scale=100)
    if not drawn:
        return None
    subtitle = ""
    if (best := history.best) is not None:
        value = 100 * best["val_accuracy"]
        subtitle = f"best on val {value:.2f} % after epoch {best['epoch']}"
        axes.plot(
            best["epoch"], value, "*", ms=15, mec=theme.background, mfc=theme.test, mew=1.2, zorder=5, clip_on=False
        )
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 101.0))
    head(axes, theme, "Accuracy", subtitle, legend=3)
    return figure


def loss(history: History, theme: Theme) -> Figure | None:
    """Train and val loss by epoch over the loss at the logged steps; logarithmic where it spans two decades."""
    figure, axes = _by_epoch(history, theme, "loss")
    drawn = _step_line(axes, history, "loss", theme)
    drawn |= _epoch_lines(axes, history, "loss", theme)
    if not drawn:
        return None
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 100 * values.min():
        axes.set_yscale("log")
        axes.set_ylabel("loss, logarithmic")
    tested = column(history.epochs, "val_loss")
    subtitle = ""
    if np.isfinite(tested).any():
        best = int(np.nanargmin(tested))
        subtitle = f"lowest on val {tested[best]:.4f} after epoch {history.epochs[best]['epoch']}"
    head(axes, theme, "Loss", subtitle, legend=3)
    return figure


def learning_rate(history: History, theme: Theme) -> Figure | None:
    """Learning rate at the logged steps (or the ends of epochs)."""
    rows = history.steps or history.epochs
    rates = column(rows, "lr")
    if not np.isfinite(rates).any():
        return None
    figure, axes = _by_epoch(history, theme, "learning rate")
    axes.plot(column(rows, "epoch"), rates, color=theme.train, lw=2, **markers(rates))
    axes.set_ylim(0, 1.08 * np.nanmax(rates))
    axes.yaxis.set_major_formatter("{x:.4g}")
    head(axes, theme, "Learning rate", f"peak {np.nanmax(rates):.3g}, last {rates[np.isfinite(rates)][-1]:.3g}")
    return figure


def throughput(history: History, theme: Theme) -> Figure | None:
    """Images per second, and under it the share of the time in which the step waited for data."""
    speeds, waits = column(history.steps, "images_per_second"), column(history.steps, "data_wait_fraction")
    rows = history.steps
    if not np.isfinite(speeds).any():
        rows = history.epochs
        speeds, waits = column(rows, "images_per_second"), column(rows, "data_wait_fraction")
    if not np.isfinite(speeds).any():
        return None
    x, waited = column(rows, "epoch"), bool(np.isfinite(waits).any())
    figure = new_figure(theme)
    panels = figure.subplots(2 if waited else 1, sharex=True, squeeze=False, height_ratios=(2.4, 1)[: 1 + waited])[:, 0]
    for axes in panels:
        dress(axes, theme, y="images/s" if axes is panels[0] else "waiting, %")
    _epoch_axis(panels[-1], history, theme)
    _mark_sessions(list(panels), history, theme, top=False)
    axes = panels[0]
    axes.plot(x, speeds, color=theme.train, lw=1.6, **markers(speeds))
    subtitle = ""
    if history.images_per_second is not None:
        axes.axhline(history.images_per_second, color=theme.muted, lw=1, ls=(0, (4, 3)))
        subtitle = f"median {history.images_per_second:,.0f} images/s (dashed)"
    axes.set_ylim(0, 1.12 * np.nanmax(speeds))
    if waited:
        percent = 100 * waits
        panels[1].fill_between(x, 0, percent, color=theme.test, alpha=0.35, lw=0)
        panels[1].plot(x, percent, color=theme.test, lw=1.4, **markers(percent))
        panels[1].set_ylim(0, max(10.0, 1.2 * np.nanmax(percent)))
        subtitle += f" · {np.nanmedian(percent):.1f} % of the time waiting for data"
    head(axes, theme, "Throughput", subtitle)
    return figure


CHARTS: dict[str, Callable[[History, Theme], Any]] = {
    "accuracy": accuracy,
    "loss": loss,
    "throughput": throughput,
    "memory": memory,
    "learning_rate": learning_rate,
    "activity": activity,
}
"""File name in plots/ and chart."""


def draw(history: History, names: Iterable[str] = tuple(CHARTS), theme: Theme = LIGHT) -> dict[str, bytes]:
    """PNGs by name, without those that have nothing to show."""
    figures = {name: CHARTS[name](history, theme) for name in names}
    return {name: to_png(figure) for name, figure in figures.items() if figure is not None}


def write_plots(pictures: dict[str, bytes], folder: Path) -> list[Path]:
    """Write `folder`/NAME.png for each picture, each in one step; returns the paths. Makes the folder."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        with atomic_file(path) as temporary:
            temporary.write_bytes(picture)
        paths.append(path)
    return paths


def _by_epoch(history: History, theme: Theme, y: str, rising: bool = False) -> tuple[Figure, Axes]:
    """A chart over epochs; `rising` lines leave the bottom free for labels, others the top."""
    figure = new_figure(theme)
    axes = figure.subplots()
    dress(axes, theme, y=y)
    _epoch_axis(axes, history, theme)
    _mark_sessions([axes], history, theme, top=not rising)
    return figure, axes


def _epoch_axis(axes: Axes, history: History, theme: Theme) -> None:
    """x in epochs, from the start to the last row; whole numbers where there are several."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", color=theme.muted, fontsize=9.5)
    last = max([float(row["epoch"]) for row in [*history.steps[-1:], *history.epochs[-1:]]], default=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=last > 2, nbins=10, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, 1.02 * max(last, 1e-3))


def _mark_sessions(panels: Sequence[Axes], history: History, theme: Theme, top: bool = True) -> None:
    """A dotted line where a session went on after another, named in the first panel."""
    for at in history.resumed_at:
        for axes in panels:
            axes.axvline(at, color=theme.muted, lw=1, ls=(0, (1, 2)))
        panels[0].annotate(
            "resumed",
            (at, 1 if top else 0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -4 if top else 4),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top" if top else "bottom",
            fontsize=8,
            color=theme.muted,
        )


def _epoch_lines(axes: Axes, history: History, what: str, theme: Theme, scale: float = 1.0) -> bool:
    x, drawn = column(history.epochs, "epoch"), False
    for split, colour, dash, marker in (("train", theme.train, (0, (5, 2)), "o"), ("val", theme.test, "-", "s")):
        values = scale * column(history.epochs, f"{split}_{what}")
        if np.isfinite(values).any():
            axes.plot(x, values, color=colour, ls=dash, lw=2.2, label=split, **markers(values, marker))
            drawn = True
    return drawn


def _step_line(axes: Axes, history: History, what: str, theme: Theme, scale: float = 1.0) -> bool:
    values = scale * column(history.steps, what)
    if not np.isfinite(values).any():
        return False
    alone = not history.epochs
    style: dict[str, Any] = {"lw": 1.8, "alpha": 1.0} if alone else {"lw": 1.2, "alpha": 0.6}
    x = column(history.steps, "epoch")
    axes.plot(x, values, color=theme.train, label="train, by step", **style, **(markers(values) if alone else {}))
    return True
