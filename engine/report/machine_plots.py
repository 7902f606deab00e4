"""Charts of what a run took from the machine, over time: memory, and how busy it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.report.plot_style import Theme, dress, head, markers, new_figure
from engine.runs.history import History, Row, column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30


def memory(history: History, theme: Theme) -> Figure | None:
    """Memory over the time in training: card, process and allocator on a GPU, else the host; else by logged step."""
    samples, minutes, unit = _samples(history)
    total = history.summary["gpu_total_bytes"]
    names = {
        "gpu_used_bytes": "card",
        "gpu_process_bytes": "this run",
        "torch_reserved_bytes": "reserved",
        "torch_allocated_bytes": "in tensors",
    }
    if not _present(names, samples):
        names, total = {"process_rss_bytes": "resident"}, None
    x, x_label = minutes, f"time in training, {unit}"
    if not _present(names, samples):
        samples, names, total = history.steps, {"memory_bytes": "in use"}, None
        x, x_label = column(samples, "epoch"), "epoch"
    series = {label: column(samples, key) / GIB for key, label in names.items()}
    series = {label: values for label, values in series.items() if np.isfinite(values).any()}
    if not series:
        return None
    figure = new_figure(theme)
    axes = figure.subplots()
    dress(axes, theme, x=x_label, y="GiB")
    dashes = ("-", (0, (5, 2)), (0, (3, 1, 1, 1)), (0, (1, 1))) if len(x) <= 300 else ("-",) * 4
    for (label, values), colour, dash in zip(series.items(), theme.lines, dashes, strict=False):
        axes.plot(x, values, color=colour, ls=dash, lw=1.8, label=label, **markers(values))
    highest = max(np.nanmax(values) for values in series.values())
    subtitle = f"this run's peak: {(history.peak_memory_bytes or 0) / GIB:.2f} GiB"
    if total:
        subtitle += f" of {total / GIB:.1f} GiB"
        if highest > 0.5 * total / GIB:
            axes.axhline(total / GIB, color=theme.muted, lw=1)
            highest = max(highest, total / GIB)
    axes.set_ylim(0, 1.1 * highest)
    title = "Host memory" if "process_rss_bytes" in names else "Memory"
    head(axes, theme, title, subtitle, legend=4 if len(series) > 1 else 0)
    return figure


def activity(history: History, theme: Theme) -> Figure | None:
    """How busy the machine was: GPU use, power, temperature and clock over time; without a GPU its processors."""
    samples, time, unit = _samples(history)
    gpu = {
        "gpu_utilization": ("use, %", 100.0),
        "gpu_power_watts": ("power, W", 1.0),
        "gpu_temperature_celsius": ("chip, °C", 1.0),
        "gpu_sm_clock_mhz": ("clock, MHz", 1.0),
    }
    host = {"process_cpu_percent": ("this run, cores", 0.01), "host_cpu_percent": ("machine, %", 1.0)}
    known, on_gpu = _present(gpu, samples), True
    if not known:
        known, on_gpu = _present(host, samples), False
    if not known:
        return None
    figure = new_figure(theme)
    columns = 2 if len(known) > 2 else 1
    grid = figure.subplots(-(-len(known) // columns), columns, sharex=True, squeeze=False)
    panels = list(grid.flat)
    for axes, colour, (key, (label, scale)) in zip(panels, theme.lines, known.items(), strict=False):
        values = scale * column(samples, key)
        dress(axes, theme, y=label)
        axes.plot(time, values, color=colour, lw=1.4, **markers(values))
        axes.set_ylim(0, max(1.0, 1.15 * np.nanmax(values)))
        axes.locator_params(axis="y", nbins=4)
    for axes in panels[len(known) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel(f"time in training, {unit}", color=theme.muted, fontsize=9.5)
    summary = history.summary
    if on_gpu:
        facts = [
            (summary["mean_gpu_utilization"], 100.0, "mean use {:.0f} %"),
            (summary["energy_joules"], 1 / 3600, "{:,.1f} Wh"),
        ]
    else:
        facts = [(summary["mean_process_cpu_percent"], 0.01, f"mean {{:.2f}} of {summary['host_cores']} cores")]
    told = " · ".join(text.format(value * scale) for value, scale, text in facts if value is not None)
    head(panels[0], theme, "GPU activity" if on_gpu else "Processor activity", told)
    return figure


def _present(fields: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """Those of `fields` that at least one row has a number for."""
    return {key: value for key, value in fields.items() if np.isfinite(column(rows, key)).any()}


def _samples(history: History) -> tuple[list[Row], np.ndarray, str]:
    """(samples, time of each since the start of training less the pauses between sessions, its unit)."""
    samples: list[Row] = []
    at: list[float] = []
    elapsed, before = 0.0, None
    for row in history.monitor:
        now = row.get("time")
        if row.get("kind") == "start" or now is None:
            before = None
            continue
        elapsed += max(0.0, now - before) if before is not None else 0.0
        before = now
        samples.append(row)
        at.append(elapsed)
    divisor, unit = (3600, "hours") if elapsed > 3 * 3600 else (60, "minutes") if elapsed > 180 else (1, "seconds")
    return samples, np.array(at) / divisor, unit
