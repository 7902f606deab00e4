"""Run folders as training writes them, with numbers that look like a real run's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from engine.report.compare import write_report

CONFIG = """\
model: {arch: resnext50, compile: auto, channels_last: true}
data: {name: digits, root: null, image_size: 64, crop_scale: null}
optim: {epochs: EPOCHS, batch_size: 128, lr: 0.001, optimizer: adam, schedule: cosine}
precision: {precision: auto}
log: {output: null, every: 10}
seed: 0
"""
PLAN = {
    "device": "cuda",
    "device_name": "NVIDIA GeForce RTX 4070",
    "precision": "bf16",
    "global_batch_size": 128,
    "micro_batch_size": 64,
    "accumulation": 2,
    "ranks": 1,
    "parameter_bytes": 92_000_000,
    "zero_stage": 0,
    "changes": ["BatchNorm sees micro-batches of 64 images, not 128"],
}
START = 1_790_000_000.0
BEGIN_LOSS = 2.4


def metrics_rows(epochs: int, steps: int = 40, *, asked: int | None = None, seed: int = 0) -> list[dict]:
    """Rows of `epochs` whole epochs of `steps` steps, one row every 10, under a cosine schedule over `asked`."""
    rng, asked = np.random.default_rng(seed), asked or epochs
    rows, time = [{"kind": "event", "event": "start", "step": 0, "torch": "2.15.0", "time": START}], START + 8
    for epoch in range(epochs):
        for step in range(10, steps + 1, 10):
            at = epoch + step / steps
            time += 2.0
            loss = BEGIN_LOSS * math.exp(-0.35 * at) + 0.05 + rng.normal(0, 0.03)
            rows.append(
                {
                    "kind": "step",
                    "step": epoch * steps + step,
                    "epoch": at,
                    "loss": max(0.01, loss),
                    "accuracy": min(1.0, max(0.0, 1 - 0.9 * math.exp(-0.5 * at) + rng.normal(0, 0.01))),
                    "lr": 0.0005 * (1 + math.cos(math.pi * at / asked)),
                    "images_per_second": 610 + rng.normal(0, 12) - (200 if step == 10 and epoch == 0 else 0),
                    "memory_bytes": 5 << 30,
                    "data_wait_fraction": 0.02 + abs(rng.normal(0, 0.01)),
                    "time": time,
                }
            )
        time += 1.0
        rows.append(
            {
                "kind": "epoch",
                "epoch": epoch + 1,
                "step": (epoch + 1) * steps,
                "train_loss": BEGIN_LOSS * math.exp(-0.35 * (epoch + 1)) + 0.06,
                "train_accuracy": 1 - 0.9 * math.exp(-0.5 * (epoch + 1)),
                "val_loss": BEGIN_LOSS * math.exp(-0.3 * (epoch + 1)) + 0.09 + rng.normal(0, 0.01),
                "val_accuracy": 0.985 - 0.85 * math.exp(-0.5 * (epoch + 1)) + rng.normal(0, 0.003),
                "val_top5": 0.999,
                "images_per_second": 605.0,
                "seconds": 8.4,
                "lr": rows[-1]["lr"],
                "best": True,
                "time": time,
            }
        )
    return rows


def gpu_monitor(seconds: int, seed: int = 0) -> list[dict]:
    """A monitor's rows of one session on a 12 GiB card."""
    rng, gib = np.random.default_rng(seed), 1 << 30
    rows = [
        {
            "kind": "start",
            "time": START,
            "interval": 1.0,
            "gpu_name": "NVIDIA GeForce RTX 4070",
            "gpu_total_bytes": 12 * gib,
            "host_cores": 8,
        }
    ]
    for second in range(seconds):
        rise = min(1.0, second / 15)
        rows.append(
            {
                "kind": "sample",
                "time": START + second,
                "gpu_used_bytes": int((1.1 + 7.2 * rise) * gib),
                "gpu_process_bytes": int((0.4 + 7.1 * rise) * gib),
                "torch_reserved_bytes": int(6.9 * rise * gib),
                "torch_allocated_bytes": int(4.5 * rise * gib * (0.8 + 0.2 * rng.random())),
                "torch_peak_bytes": int(6.2 * rise * gib),
                "gpu_utilization": min(1.0, 0.93 * rise + 0.05 * rng.random()),
                "gpu_power_watts": 40 + 150 * rise + rng.normal(0, 5),
                "gpu_energy_joules": 170.0 * second,
                "gpu_temperature_celsius": int(38 + 27 * min(1.0, second / 60)),
                "gpu_sm_clock_mhz": int(2500 + rng.normal(0, 30)),
                "process_rss_bytes": int(2.1 * gib),
                "process_cpu_percent": 130.0,
                "host_cpu_percent": 22.0,
                "sample_seconds": 0.0006,
            }
        )
    return rows


def host_monitor(seconds: int) -> list[dict]:
    """A monitor's rows of one session without a GPU."""
    rows = [{"kind": "start", "time": START, "interval": 1.0, "host_cores": 2, "host_total_bytes": 16 << 30}]
    for second in range(seconds):
        rows.append(
            {
                "kind": "sample",
                "time": START + second,
                "process_rss_bytes": int((0.9 + 0.6 * min(1.0, second / 10)) * (1 << 30)),
                "process_cpu_percent": None if second == 0 else 188.0 + 4 * math.sin(second),
                "host_cpu_percent": None if second == 0 else 97.0,
                "sample_seconds": 0.0003,
            }
        )
    return rows


def with_end(rows: list[dict]) -> list[dict]:
    """`rows` with the event that ends a whole run."""
    return [*rows, {"kind": "event", "event": "finished", "step": rows[-1]["step"], "time": rows[-1]["time"] + 1}]


def write_run(folder: Path, rows=(), monitor=None, config: str | None = CONFIG, plan=PLAN) -> Path:
    """Write a run folder; a part that is None is missing."""
    folder.mkdir()
    if config is not None:
        asked = sum(row["kind"] == "epoch" for row in rows) or 1
        (folder / "config.yaml").write_text(config.replace("EPOCHS", str(asked)))
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if monitor is not None:
        (folder / "monitor.jsonl").write_text("".join(json.dumps(row) + "\n" for row in monitor))
    return folder


@pytest.fixture(scope="session")
def metrics():
    """metrics(epochs, steps=40): rows of metrics.jsonl."""
    return metrics_rows


@pytest.fixture(scope="session")
def gpu_rows():
    """gpu_rows(seconds): rows of monitor.jsonl with a GPU."""
    return gpu_monitor


@pytest.fixture(scope="session")
def host_rows():
    """host_rows(seconds): rows of monitor.jsonl without one."""
    return host_monitor


@pytest.fixture(scope="session")
def finished():
    """finished(rows): with the event that ends a whole run."""
    return with_end


@pytest.fixture(scope="session")
def whole_rows():
    """Three epochs to the end, with two unreadable images."""
    rows = metrics_rows(3)
    bad = [
        {"kind": "event", "event": "bad_image", "path": f"train/cat/{number}.jpg", "reason": "cut", "time": START}
        for number in (1, 2)
    ]
    return with_end([*rows[:4], *bad, *rows[4:]])


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory, whole_rows):
    """A finished GPU run with its charts and page written, once for all tests; not to be changed."""
    folder = write_run(tmp_path_factory.mktemp("drawn") / "run", whole_rows, gpu_monitor(30))
    write_report(folder)
    return folder


@pytest.fixture
def make_run(tmp_path):
    """make_run(name="run", rows=..., monitor=..., config=..., plan=...) writes a run folder and returns its path."""
    return lambda name="run", **parts: write_run(tmp_path / name, **parts)
