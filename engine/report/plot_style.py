"""How the charts look: two themes, colours that colour-blind readers can tell apart, one frame for every chart.

Colours are Okabe and Ito's (2008, jfly.uni-koeln.de/color), lightened for the dark theme; lines that share a chart
also differ in dash or marker. Figures are made without pyplot, so nothing here touches a program's own plots.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.2, 4.0)
"""Inches of a chart; at DPI this is 1440 × 800 pixels."""
DPI = 200
HEAD = 0.55
"""Inches above the axes for title and legend."""
FEW = 30
"""A line of up to this many points shows each."""
FONT = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic."""
OTHER_SCRIPTS = ("Noto Sans CJK", "WenQuanYi", "IPAGothic", "Noto Sans Devanagari", "Noto Sans Thai")
"""Beginnings of the names of fonts that are used for class names where they are installed."""


@dataclass(frozen=True)
class Theme:
    """Colours of a chart, as matplotlib and CSS write them."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    train: str
    test: str
    lines: tuple[str, ...]
    """For charts with other lines than train and test."""
    heat: tuple[str, ...]
    """None, then from the least share to all, for the confusion matrix: one hue, lightness alone tells the value."""


LIGHT = Theme(
    name="light",
    background="#ffffff",
    text="#1b2430",
    muted="#5d6b7a",
    grid="#e4e8ee",
    train="#0072b2",
    test="#d55e00",
    lines=("#0072b2", "#d55e00", "#009e73", "#9c5a86", "#7a6a00"),
    heat=("#ffffff", "#cfe4f2", "#93c5e3", "#4596c8", "#0f5c94", "#06304f"),
)
DARK = Theme(
    name="dark",
    background="#171d26",
    text="#e8edf3",
    muted="#9aa8b7",
    grid="#2a3340",
    train="#5bb8f0",
    test="#f0a35b",
    lines=("#5bb8f0", "#f0a35b", "#3fcf9f", "#e09ac6", "#e6d354"),
    heat=("#171d26", "#1c3d59", "#215c89", "#3a8fc4", "#8cc9ee", "#eef8ff"),
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def new_figure(theme: Theme, size: tuple[float, float] = SIZE) -> Figure:
    """An empty figure on an Agg canvas, with HEAD left free at its top.

    The layout does not measure what `head` writes there: a long line would squeeze the axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, rect=(0, 0, 1, 1 - HEAD / size[1]))
    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.background, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, theme: Theme, *, x: str = "", y: str = "") -> None:
    """Frame, grid and axis labels."""
    axes.set_facecolor(theme.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.muted)
        spine.set_linewidth(0.8)
    axes.grid(True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelcolor=theme.muted, labelsize=9.5, length=0, pad=5)
    axes.tick_params(axis="x", which="major", length=3)
    axes.set_xlabel(x, color=theme.muted, fontsize=9.5)
    axes.set_ylabel(y, color=theme.muted, fontsize=9.5)


def head(axes: Axes, theme: Theme, title: str, subtitle: str = "", *, legend: int = 0) -> None:
    """Above the axes: title and a line under it on the left, a legend of `legend` columns on the right."""
    texts: list[tuple[str, int, dict[str, Any]]] = [
        (title, 27, {"color": theme.text, "fontsize": 12.5, "fontweight": "bold"})
    ]
    texts += [(subtitle, 11, {"color": theme.muted, "fontsize": 9.5})]
    for text, points, style in texts:
        axes.annotate(
            text, (0, 1), xytext=(0, points), xycoords="axes fraction", textcoords="offset points", **style
        ).set(in_layout=False, parse_math=False)
    if legend:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            borderaxespad=2.6,
            borderpad=0,
            ncols=legend,
            frameon=False,
            fontsize=9.5,
            labelcolor=theme.text,
            handlelength=2.2,
            columnspacing=1.4,
        ).set_in_layout(False)


def markers(values: np.ndarray, marker: str = "o") -> dict[str, Any]:
    """A line of few points shows each; a line of one point would not be seen at all without."""
    return {"marker": marker, "ms": 5} if np.isfinite(values).sum() <= FEW else {}


@cache
def fonts() -> list[str]:
    """FONT and those of OTHER_SCRIPTS that this machine has; matplotlib warns of each one that it does not find."""
    from matplotlib.font_manager import fontManager

    return [FONT, *(name for name in fontManager.get_font_names() if name.startswith(OTHER_SCRIPTS))]


def plain_text(texts: Sequence[Any]) -> None:
    """Class and file names are no formulas: a `$` in one is a dollar sign."""
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(fonts())


def to_png(figure: Figure) -> bytes:
    """The picture. Signs that no installed font has are drawn as boxes, without a warning for each."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()
