"""The measuring itself: turns, ratios, what is recorded, and that the suites run at tiny sizes."""

import json

import pytest
from PIL import Image

from engine.bench.interleave import interleave
from engine.bench.record import record
from engine.bench.run_record import run_figures
from engine.records import RecordWriter


def test_contenders_take_turns_and_the_warmup_is_left_out():
    calls = []

    def contender(name: str, rate: float):
        def run() -> float:
            calls.append(name)
            return rate * len(calls)

        return run

    result = interleave({"a": contender("a", 2.0), "b": contender("b", 1.0)}, rounds=3, warmup=1)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert result.rates == {"a": [8.0, 10.0, 16.0], "b": [3.0, 6.0, 7.0]}
    ratio = result.as_dict()["ratio"]["a / b"]
    assert ratio["rounds"] == [2.6667, 1.6667, 2.2857]
    assert (ratio["median"], ratio["min"], ratio["max"]) == (2.2857, 1.6667, 2.6667)


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    speed = iter([100, 100, 50, 50, 10, 10, 5, 5])
    result = interleave({"a": lambda: 3.0 * next(speed), "b": lambda: 2.0 * next(speed)}, rounds=4, warmup=0)
    assert result.ratios("b") == pytest.approx([1.5] * 4)


def test_a_record_says_how_to_take_it_again(tmp_path):
    path = record("tiny", {"ratio": 1.5}, tmp_path)
    written = json.loads(path.read_text())
    assert path.parent.parent == tmp_path and path.name == "tiny.json"
    assert written["figures"] == {"ratio": 1.5}
    assert written["command"].startswith("python ") and written["commit"] and written["date"]
    assert written["versions"]["torch"] and written["machine"]["cores"] >= 1


def test_trainer_and_bare_loop_run(reset_accelerator):
    from engine.bench.trainer_tax import trainer_tax

    result = trainer_tax("resnet18", 2, 32, "fp32", steps=2, rounds=2)
    assert len(result.ratios("bare loop")) == 2
    assert all(0.05 < ratio < 20 for ratio in result.ratios("bare loop"))


def test_both_loaders_deliver_every_photo(tmp_path):
    from engine.bench.loader_rate import loader_rate, photos

    for number in range(6):
        Image.new("RGB", (40 + number, 30), (number, 90, 10)).save(tmp_path / f"{number}.jpg")
    assert len(photos(tmp_path).train) == 6
    result = loader_rate(tmp_path, "val", 16, 4, rounds=1, workers=1, epochs=1)
    assert set(result.rates) == {"DALI", "torchvision DataLoader"}
    assert all(rate > 0 for rates in result.rates.values() for rate in rates)


def test_photos_of_an_empty_folder(tmp_path):
    from engine.bench.loader_rate import photos

    with pytest.raises(ValueError, match="no images below"):
        photos(tmp_path)


def test_run_figures_come_from_the_runs_rows(tmp_path):
    with RecordWriter(tmp_path / "metrics.jsonl") as rows:
        start = {"event": "start", "command": "launch/train.py", "device": "CPU", "threads": 2, "ranks": 1}
        rows.write({"kind": "event", **start, "startup_seconds": 4.0})
        for accuracy in (0.5, 0.9, 0.8):
            epoch = {"train_images": 8, "test_images": 4, "images_per_second": 10.0, "test_accuracy": accuracy}
            rows.write({"kind": "epoch", **epoch})
    with pytest.raises(ValueError, match="not a finished run"):
        run_figures(tmp_path)
    with RecordWriter(tmp_path / "metrics.jsonl") as rows:
        rows.write({"kind": "event", "event": "finished", "seconds": 12.5, "unreadable_images": 0})
    figures = run_figures(tmp_path)
    assert figures["best_test_accuracy"] == 0.9 and figures["epochs"] == 3 and figures["seconds"] == 12.5
