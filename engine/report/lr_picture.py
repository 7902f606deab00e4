"""The curve of a learning-rate sweep: the loss by the rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.report.plot_style import LIGHT, Theme, dress, head, new_figure, to_png


def lr_picture(sweeps: Sequence[Any], found: Any, title: str, theme: Theme = LIGHT) -> bytes:
    """PNG: each repetition's losses as points and smoothed as a line, and the suggestion with its spread.

    sweeps  engine.train.lr_curve's Sweep
    found   its Suggestion
    """
    figure = new_figure(theme)
    axes = figure.subplots()
    dress(axes, theme, x="learning rate, raised every step", y="loss")
    axes.set_xscale("log")
    lowest, first = np.inf, -np.inf
    for sweep, colour in zip(sweeps, theme.lines, strict=False):
        losses, curve = np.array(sweep.losses), sweep.smoothed
        rates = np.array(sweep.rates[: len(losses)])
        whole = np.isfinite(losses)
        axes.plot(rates[whole], losses[whole], ".", ms=3, color=colour, alpha=0.35)
        axes.plot(rates[whole], curve, color=colour, lw=1.8)
        if len(curve):
            lowest, first = min(lowest, curve.min()), max(first, curve[0])
    if np.isfinite(lowest):
        axes.set_ylim(max(0.0, lowest - 0.15 * (first - lowest)), first + 0.6 * (first - lowest) + 1e-3)
    subtitle = "no rate lowered the loss"
    if found.rate is not None:
        axes.axvspan(min(found.each), max(found.each), color=theme.muted, alpha=0.2, lw=0)
        axes.axvline(found.rate, color=theme.text, lw=1.2, ls=(0, (4, 3)))
        subtitle = f"suggested {found.rate:.2g} (dashed), {found.sureness}: repetitions within × {found.factor:.2g}"
    head(axes, theme, title, subtitle)
    return to_png(figure)
