"""Memory over one training step, stacked by category."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from engine.config.byte_sizes import GIB, gib
from engine.config.pixels.image_size import px
from engine.plan.memory.trace import ONCE, Category, Timeline
from engine.plan.workload import Planned
from engine.report.plot_style import LIGHT, Theme, dress, head, new_figure, to_png

POINTS = 1200
"""Events drawn: a longer step is cut into as many parts, each shown by its highest moment."""

SHOWN = (
    ("context, loader", (Category.CONTEXT, Category.LOADER)),
    ("communication", (Category.COMMUNICATION,)),
    (
        "parameters, optimizer",
        (Category.PARAMETERS, Category.OPTIMIZER, Category.AVERAGE, Category.KEPT, Category.TEACHER),
    ),
    ("gradients", (Category.GRADIENTS,)),
    ("input", (Category.INPUT,)),
    ("saved activations", (Category.SAVED, Category.AUTOCAST)),
    ("transient", (Category.TRANSIENT,)),
    ("workspace, rounding", (Category.WORKSPACE, Category.ROUNDING, Category.FRAGMENTATION)),
)
"""Bands from the bottom up."""
COLOURS = {
    "light": ("#8d99a6", "#5b4b8a", "#0072b2", "#56b4e9", "#c9b458", "#009e73", "#d55e00", "#cc79a7"),
    "dark": ("#6c7887", "#a493d6", "#3d8fc7", "#8cc9ee", "#d8c874", "#3fcf9f", "#f0a35b", "#e09ac6"),
}


def condensed(timeline: Timeline) -> np.ndarray:
    """Columns of the events to draw: of each part of the step the one at which the most is live."""
    total = timeline.total
    edges = np.unique(np.linspace(0, len(total), min(POINTS, len(total)) + 1).astype(int))
    return np.array([first + int(total[first:last].argmax()) for first, last in pairwise(edges)])


def memory_picture(timeline: Timeline, title: str, subtitle: str = "", budget: int = 0, theme: Theme = LIGHT) -> bytes:
    """PNG of a step's live bytes by category.

    budget  bytes of the device, drawn as a line where they are not far above
    """
    figure = new_figure(theme, (7.2, 4.6))
    axes = figure.subplots()
    columns = condensed(timeline)
    bands = [timeline.live[list(categories)].sum(axis=0)[columns] / GIB for _, categories in SHOWN]
    # a band of nothing would only lengthen the legend
    there = [place for place, band in enumerate(bands) if band.max() > 0.002 * timeline.peak / GIB]
    axes.stackplot(
        columns,
        [bands[place] for place in there],
        labels=[SHOWN[place][0] for place in there],
        colors=[COLOURS[theme.name][place] for place in there],
        linewidth=0,
        step="mid",
    )
    top = timeline.peak / GIB
    if budget and budget / GIB < 1.5 * top:
        axes.axhline(budget / GIB, color=theme.text, linewidth=1.2, linestyle=(0, (5, 3)))
        axes.annotate(
            f"{budget / GIB:g} GiB",
            (columns[-1], budget / GIB),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=theme.text,
            fontsize=9,
        )
        top = max(top, budget / GIB)
    axes.set_xlim(0, columns[-1])
    axes.set_ylim(0, 1.12 * top)
    dress(axes, theme, x="one training step, operator by operator", y="GiB")
    _phases(axes, timeline, columns[-1], theme)
    head(axes, theme, title, subtitle)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=theme.text,
        handlelength=1.2,
    )
    return to_png(figure)


def _phases(axes, timeline: Timeline, end: int, theme: Theme) -> None:
    """The names of the phases under the axis's ticks' place, and a line where each begins."""
    starts = [first for first, _ in timeline.phases]
    middles: Sequence[float] = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], end], strict=True)]
    for first in starts[1:]:
        axes.axvline(first, color=theme.muted, linewidth=0.8, linestyle=":")
    shown = [(middle, name) for middle, (_, name) in zip(middles, timeline.phases, strict=True) if name not in ONCE]
    axes.set_xticks([middle for middle, _ in shown], [name for _, name in shown])


def planned_picture(planned: Planned) -> bytes | None:
    """PNG of memory over the step of a plan; None where nothing was searched."""
    if planned.result is None or planned.timeline is None:
        return None
    plan, load = planned.plan, planned.result.workload
    return memory_picture(
        planned.timeline,
        f"{load.name}, batch {load.global_batch}, {px(load.image_size)}",
        f"{plan.precision}, {plan.micro_batch_size} × {plan.accumulation} × {plan.ranks}, recompute "
        f"{plan.recompute}: peak {gib(plan.predicted_peak_bytes)}",
        planned.result.budget,
    )
