"""A run folder as one HTML page that needs nothing but itself, and several as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.report.page import data_uri, epochs_done, page_facts
from engine.report.plot_style import DARK, LIGHT
from engine.report.plots import draw, write_plots
from engine.runs.door import atomic_file
from engine.runs.history import read_history
from engine.runs.text_table import text_table
from engine.runs.wording import DASH, duration, gib, number, percent

TEMPLATE = "page.html.jinja"

ALT_TEXTS = {
    "accuracy": "Line chart: accuracy on the training and the validation images by epoch, in percent",
    "loss": "Line chart: loss on the training and the validation images by epoch",
    "throughput": "Line chart: images per second, and the share of the time in which training waited for data",
    "memory": "Line chart: memory over time",
    "learning_rate": "Line chart: learning rate by epoch",
    "activity": "Line charts: how busy the machine was over time",
}


def write_report(run_folder: Path) -> Path:
    """Draw `run_folder`/plots/*.png and write `run_folder`/report.html; returns the page's path.

    Works on a run that goes on, was cut off, or resumed, and with any of its files missing; an evaluation/ folder in
    it (launch/evaluate.py) is shown as well. Raises engine.runs.history.NotARun where the folder holds no run.
    """
    import jinja2

    history = read_history(Path(run_folder))
    light, dark = draw(history, theme=LIGHT), draw(history, theme=DARK)
    write_plots(light, history.folder / "plots")
    charts = [
        {"alt": ALT_TEXTS[name], "light": data_uri(picture), "dark": data_uri(dark[name])}
        for name, picture in light.items()
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(charts=charts, **page_facts(history))
    path = history.folder / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def summary_table(run_folders: Iterable[Path]) -> str:
    """A line a run for the terminal: what was trained, how far, how well, how fast. Raises NotARun."""
    rows = []
    for folder in run_folders:
        history = read_history(Path(folder))
        best = history.best or {}
        rows.append(
            (
                history.name,
                history.arch or DASH,
                history.data or DASH,
                epochs_done(history),
                percent(best.get("val_accuracy")),
                str(best.get("epoch", DASH)),
                number(best.get("val_loss"), 4),
                percent((history.test or {}).get("test_accuracy")),
                number(history.images_per_second, 0),
                gib(history.peak_memory_bytes),
                duration(history.seconds),
                history.state,
            )
        )
    heads = ("run", "arch", "data", "epochs", "best val", "at", "loss", "test", "images/s", "memory", "time", "state")
    return text_table(heads, rows, left=3)
