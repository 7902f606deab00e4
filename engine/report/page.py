"""What the report page says, as text: the template only lays it out."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

from engine.config.pixels.image_size import px, size_from
from engine.report.plan_table import plan_rows
from engine.runs.history import History, Row, read_json
from engine.runs.wording import duration, gib, measured, moment, number, percent, value_of, words

LISTED = 200
"""Bad images and events on the page; metrics.jsonl has all."""
WORST = 12
"""Classes and confused pairs on the page; evaluation.json has all classes."""
EVENT_WORDS = {
    "start": "started",
    "resume": "resumed",
    "bad_image": "image does not decode",
    "interrupted": "interrupted",
    "nan": "loss not finite",
    "out_of_memory": "out of memory",
    "memory_exhausted": "ended without memory",
    "memory": "memory compared",
    "finished": "finished",
}
MONITOR_WORDS = {
    "gpu_process_bytes": "GPU memory of this run",
    "gpu_used_bytes": "GPU memory in all",
    "torch_allocated_bytes": "in tensors (torch)",
    "torch_reserved_bytes": "reserved (torch)",
    "process_rss_bytes": "host memory of this process",
    "gpu_utilization": "GPU use",
    "gpu_power_watts": "power",
    "gpu_temperature_celsius": "GPU temperature",
    "gpu_sm_clock_mhz": "GPU clock",
    "process_cpu_percent": "processors used by this process",
    "host_cpu_percent": "processors of the machine in use",
}


def page_facts(history: History) -> dict[str, Any]:
    """The template's variables, all text and lists of text; the template escapes them."""
    evaluation = read_json(history.folder / "evaluation" / "evaluation.json")
    notable = [row for row in history.events if row.get("event") != "bad_image"]
    return {
        "name": history.name,
        "state": history.state,
        "tone": {"finished": "good", "unfinished": "plain", "interrupted": "warn"}.get(history.state, "bad"),
        "subtitle": subtitle(history),
        "started": moment(history.events[0].get("time")) if history.events else None,
        "written": moment(time.time()),
        "cards": cards(history),
        "notes": [str(change) for change in history.plan.get("changes") or ()],
        "epochs": [epoch_row(row, row is history.best) for row in history.epochs],
        "monitor": monitor_rows(history),
        "monitor_note": monitor_note(history),
        "plan": plan_rows(history.plan),
        "config": config_groups(history.config),
        "events": [event_row(row) for row in notable[-LISTED:]],
        "bad_images": [(str(row.get("path", "?")), str(row.get("reason", ""))) for row in history.bad_images][:LISTED],
        "bad_count": len(history.bad_images),
        "evaluation": evaluation_facts(evaluation),
        "confusion": picture(history.folder / "evaluation" / "confusion.png") if evaluation else None,
        "memory": picture(history.folder / "memory.png"),
    }


def subtitle(history: History) -> str:
    """Network, data, precision and device, as far as they are known."""
    device = history.plan.get("device_name") or history.summary["gpu_name"]
    size = history.config.get("data", {}).get("image_size")
    batch = history.plan.get("global_batch_size") or history.config.get("optim", {}).get("batch_size")
    parts = [
        f"{history.arch} on {history.data}" if history.arch and history.data else history.arch,
        px(size_from(size)) if size else "",
        f"batch {batch}" if batch else "",
        str(history.plan.get("precision") or ""),
        str(device or ""),
    ]
    return " · ".join(part for part in parts if part)


def cards(history: History) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the figures at the head of the page."""
    best, summary = history.best, history.summary
    last = history.epochs[-1] if history.epochs else None
    found = [("best val accuracy", percent(best["val_accuracy"]), f"after epoch {best['epoch']}")] if best else []
    if history.test is not None:
        images = f"{history.test.get('test_images') or 0:,} images, once at the end"
        found.append(("test accuracy", percent(history.test.get("test_accuracy")), images))
    if last is not None:
        top5 = f"top-5 {percent(last.get('val_top5'))}"
        found.append(("last val accuracy", percent(last.get("val_accuracy")), top5))
        found.append(("last val loss", number(last.get("val_loss"), 4), f"train {number(last.get('train_loss'), 4)}"))
    elif history.steps:
        step = history.steps[-1]
        found.append(("loss", number(step.get("loss"), 4), f"at step {step['step']}, no epoch has ended"))
    found.append(("epochs", epochs_done(history), f"{duration(history.seconds)} in training"))
    if history.images_per_second is not None:
        found.append(("images per second", number(history.images_per_second, 0), "median"))
    if history.peak_memory_bytes is not None:
        total = summary["gpu_total_bytes"]
        source = MONITOR_WORDS.get(summary["peak_memory_source"] or "", "at the logged steps")
        found.append(("peak memory", gib(history.peak_memory_bytes), f"of {gib(total)}" if total else source))
    if summary["mean_gpu_utilization"] is not None:
        found.append(("GPU use", percent(summary["mean_gpu_utilization"], 0), "mean"))
    if summary["energy_joules"] is not None:
        watts = number(summary["mean_gpu_power_watts"], 0)
        found.append(("energy", f"{summary['energy_joules'] / 3600:,.1f} Wh", f"mean {watts} W"))
    if history.bad_images:
        found.append(("unreadable images", f"{len(history.bad_images):,}", "listed below"))
    return found


def epoch_row(row: Row, best: bool) -> dict[str, Any]:
    """One line of the table of epochs."""
    return {
        "best": best,
        "cells": [
            str(row["epoch"]),
            number(row.get("train_loss"), 4),
            percent(row.get("train_accuracy")),
            number(row.get("val_loss"), 4),
            percent(row.get("val_accuracy")),
            percent(row.get("val_top5")),
            number(row.get("images_per_second"), 0),
            duration(row.get("seconds")),
            number(row.get("lr"), 3, significant=True),
        ],
    }


def monitor_rows(history: History) -> list[tuple[str, str, str]]:
    """(what, mean, peak) of all that was sampled."""
    rows = []
    for field, label in MONITOR_WORDS.items():
        peak, mean = history.summary.get(f"peak_{field}"), history.summary.get(f"mean_{field}")
        if peak is not None or mean is not None:
            rows.append((label, measured(field, mean), measured(field, peak)))
    return rows


def monitor_note(history: History) -> str:
    """How much was sampled, and at what cost."""
    summary = history.summary
    if not summary["samples"]:
        return ""
    return f"{summary['samples']:,} samples; sampling took {percent(summary['cost'], 3)} of one processor core."


def config_groups(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, its fields); fields outside a group come first, without a name."""
    loose = [(words(key), value_of(key, value)) for key, value in config.items() if not isinstance(value, dict)]
    groups = [
        (words(key), [(words(name), value_of(name, item)) for name, item in value.items()])
        for key, value in config.items()
        if isinstance(value, dict)
    ]
    return ([("", loose)] if loose else []) + groups


def event_row(row: Row) -> tuple[str, str, str]:
    """(time, what happened, the details)."""
    told = ("kind", "event", "time")
    details = [f"{words(key)} {value_of(key, value)}" for key, value in row.items() if key not in told]
    event = str(row.get("event"))
    return moment(row.get("time")), EVENT_WORDS.get(event, event), ", ".join(details)


def evaluation_facts(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """evaluation.json in text: a line, the classes (worst first), the most confused pairs."""
    if not evaluation:
        return None
    classes = evaluation.get("per_class", [])
    judged = sorted((row for row in classes if row.get("recall") is not None), key=lambda row: row["recall"])
    return {
        "line": f"{percent(evaluation.get('accuracy'))} of {evaluation.get('count', 0):,} images right, "
        f"top-5 {percent(evaluation.get('top5'))}, loss {number(evaluation.get('loss'), 4)}",
        "classes": [
            (str(row["name"]), f"{row['support']:,}", percent(row["recall"]), percent(row["precision"]))
            for row in judged[:WORST]
        ],
        "caption": f"Worst {WORST} of {len(classes):,} classes" if len(judged) > WORST else "Classes, the worst first",
        "pairs": [
            (str(pair["truth"]), str(pair["predicted"]), f"{pair['count']:,}", percent(pair["share"]))
            for pair in evaluation.get("most_confused", [])[:WORST]
        ],
    }


def epochs_done(history: History) -> str:
    """`7 / 10`."""
    asked = history.epochs_asked
    done = int(history.epochs[-1]["epoch"]) if history.epochs else 0
    return f"{done} / {asked}" if asked else str(done)


def picture(path: Path) -> str | None:
    """A PNG file's data URI; None where there is no such file."""
    return data_uri(path.read_bytes()) if path.is_file() else None


def data_uri(png: bytes) -> str:
    """A picture inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
