"""Rows within a budget, resumed, crashed or missing; and the file that they go to."""

import json
from pathlib import Path

import pytest
import torch

from engine.bench.instrument import record
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable, need
from engine.bench.instrument.record import SCHEMA, Store, Unwritable, load
from engine.bench.instrument.rows import Pace, Row, describe, parse_budget, run_rows


def row(key: str, taken: list[str], seconds: float = 0.0, error: Exception | None = None, **settings) -> Row:
    """A row that writes down that it was measured."""

    def measure(deadline: float) -> dict:
        taken.append(key)
        if error:
            raise error
        return {"ratio": {}, "value": len(taken)}

    return Row(key, settings, measure, seconds)


LONG = 36000.0
"""Seconds that no test takes, on the slowest machine."""


def run(rows, store, budget=LONG, **options):
    """`run_rows`, quietly."""
    return run_rows(rows, store, budget, say=lambda text: None, **options)


def test_every_row_is_compiled(tmp_path):
    """More than the 8 graphs that Dynamo keeps for all modules of a process."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def measure(deadline: float) -> dict:
        model = torch.nn.Linear(2, 2)
        model.compile(dynamic=False, backend=backend)
        return {"shape": list(model(torch.zeros(3, 2)).shape)}

    outcome = run([Row(str(number), {}, measure, 0.0) for number in range(12)], Store("s", tmp_path))
    assert len(outcome.measured) == len(graphs) == 12


def test_a_row_that_would_run_eager_is_an_error(tmp_path):
    def measure(deadline: float) -> dict:
        model = torch.nn.Linear(2, 2)
        model.compile(dynamic=False, backend="eager")
        return {"sums": [model(torch.zeros(size, 2)).sum().item() for size in range(1, 13)]}

    with torch._dynamo.config.patch(recompile_limit=8):  # a run of growing images in this process has raised it
        outcome = run([Row("many shapes", {}, measure, 0.0)], Store("s", tmp_path))
    assert outcome.failed["many shapes"].startswith("FailOnRecompileLimitHit")


def test_what_is_measured_already_is_kept(tmp_path):
    taken: list[str] = []
    run([row("a", taken), row("b", taken)], Store("s", tmp_path))
    outcome = run([row("a", taken), row("b", taken), row("c", taken)], Store("s", tmp_path))
    assert taken == ["a", "b", "c"] and outcome.kept == ["a", "b"] and outcome.measured == ["c"]
    run([row("a", taken)], Store("s", tmp_path), fresh=True)
    run([row("b", taken, batch_size=2)], Store("s", tmp_path))
    assert taken == ["a", "b", "c", "a", "b"], "--fresh and other settings measure again"


def test_another_commit_or_torch_is_measured_again(tmp_path, monkeypatch):
    taken: list[str] = []
    run([row("a", taken)], Store("s", tmp_path))
    monkeypatch.setattr(record, "commit", lambda: "another")
    run([row("a", taken)], Store("s", tmp_path))
    monkeypatch.setattr(record.torch, "__version__", "9.9")
    run([row("a", taken)], Store("s", tmp_path))
    assert taken == ["a", "a", "a"]


def test_a_crash_is_a_row_and_the_suite_goes_on(tmp_path):
    taken: list[str] = []
    store = Store("s", tmp_path)
    rows = [row("bad", taken, error=RuntimeError("CUDA out of memory")), row("good", taken)]
    outcome = run([*rows, row("gone", taken, error=NotAvailable("DALI is not installed"))], store)
    assert taken == ["bad", "good", "gone"]
    written = json.loads(store.path.read_text())["rows"]
    assert written["bad"]["status"] == "error" and written["bad"]["error"] == "RuntimeError: CUDA out of memory"
    assert written["gone"]["status"] == "not available" and written["gone"]["reason"] == "DALI is not installed"
    assert written["good"]["figures"]["value"] == 2
    assert "1 measured, 1 failed, 1 not available" in describe(outcome, store)
    run([rows[0]], Store("s", tmp_path))
    assert taken[-1] == "bad", "a crashed row is tried again"


def test_a_package_that_is_gone_does_not_erase_what_was_measured(tmp_path):
    taken: list[str] = []
    run([row("a", taken)], Store("s", tmp_path))
    run([row("a", taken, error=NotAvailable("gone"))], Store("s", tmp_path), fresh=True)
    assert Store("s", tmp_path).rows["a"]["figures"]["value"] == 1


def test_a_budget_skips_what_does_not_fit_and_lists_it(tmp_path):
    taken: list[str] = []
    store = Store("s", tmp_path)
    outcome = run([row("first", taken), row("long", taken, seconds=2 * LONG), row("short", taken)], store)
    assert taken == ["first", "short"] and outcome.not_reached == ["long"]
    assert json.loads(store.path.read_text())["not_reached"] == ["long"]
    assert "not reached within the budget: long" in describe(outcome, store)


def test_a_budget_of_nothing_measures_nothing_and_says_so(tmp_path):
    taken: list[str] = []
    store = Store("s", tmp_path)
    outcome = run([row("a", taken)], store, budget=0.0)
    assert not taken and "0 measured" in describe(outcome, store) and "budget: a" in describe(outcome, store)


def test_the_pace_is_learned():
    pace, slow = Pace(), row("a", [], seconds=10.0)
    assert pace.seconds(slow) == 10.0
    pace.learn(slow, 30.0)
    assert pace.seconds(slow) == 30.0


@pytest.mark.parametrize(("text", "seconds"), [("8m", 480), ("90s", 90), ("1.5h", 5400), ("0", 0), (" 20 M", 1200)])
def test_budgets_as_people_write_them(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["soon", "-3m", "8 minutes", ""])
def test_budgets_that_mean_nothing(text):
    with pytest.raises(ValueError, match="give a time such as 8m"):
        parse_budget(text)


def test_a_row_says_how_to_take_it_again(tmp_path):
    store = Store("tiny", tmp_path)
    run([row("a", [], batch_size=4)], store)
    written = json.loads(store.path.read_text())
    assert store.path.parent.parent == tmp_path and store.path.name == "tiny.json" and written["schema"] == SCHEMA
    assert written["rows"]["a"]["command"].startswith("python ") and written["rows"]["a"]["date"]
    assert written["rows"]["a"]["identity"]["settings"] == {"batch_size": 4}
    assert written["rows"]["a"]["identity"]["commit"] == record.commit()
    assert written["versions"]["torch"] and written["machine"]["cores"] >= 1


def here(folder: Path, suite: str = "s") -> Path:
    """The file that a store of this machine uses."""
    path = folder / record.machine()["key"] / f"{suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_file_of_schema_1_is_taken_over(tmp_path):
    old = {"suite": "s", "date": "2026-11-24", "commit": "9024d1a", "command": "python x", "figures": {"ratio": {}}}
    here(tmp_path).write_text(json.dumps(old | {"versions": {"torch": "2.15.0"}}))
    said: list[str] = []
    store = Store("s", tmp_path)
    run_rows([row("a", [])], store, LONG, say=said.append)
    assert "schema 1" in said[0]
    written = json.loads(store.path.read_text())["rows"]
    assert written["schema 1"]["figures"] == {"ratio": {}} and written["schema 1"]["identity"]["commit"] == "9024d1a"
    assert written["a"]["status"] == "measured"


@pytest.mark.parametrize("content", ['{"schema": 99, "rows": {}}', "not json", "[1]", '{"schema": 2, "rows": []}'])
def test_a_file_that_is_not_understood_is_moved_aside(tmp_path, content):
    path = here(tmp_path)
    path.write_text(content)
    store = Store("s", tmp_path)
    run([row("a", [])], store)
    (aside,) = path.parent.glob("s.unread-*.json")
    assert aside.read_text() == content and aside.name in store.notes[0]
    assert set(json.loads(path.read_text())["rows"]) == {"a"}


def test_load_says_what_it_cannot_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"schema": 3}')
    assert load(path) == (None, f"{path} is of schema 3, this program knows 2")


def test_an_output_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(Unwritable, match=r"cannot be written .*--output"):
        Store("s", blocked)


def test_a_missing_module_is_not_available():
    with pytest.raises(NotAvailable, match="no_such_module is not installed"):
        need("no_such_module.part")


def test_options_that_cannot_be_meant():
    with pytest.raises(ValueError, match="nearest: resnet18"):
        Options(archs=("resnet81",))
    with pytest.raises(ValueError, match="fp32, bf16, fp16"):
        Options(precision="fp8")
    with pytest.raises(ValueError, match="or more"):
        Options(rounds=-1)
