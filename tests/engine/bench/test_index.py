"""profiles/README.md says what the files beside it hold, and what is missing."""

import json

from engine.bench.instrument.record import PROFILES
from engine.bench.pages.index import TO_TAKE, index, plain_command, write_index

MACHINE = {"key": "gpu-x", "gpu": "NVIDIA X", "cores": 16}


def put(folder, suite: str, **document) -> None:
    """A result file of the machine gpu-x."""
    (folder / "gpu-x").mkdir(exist_ok=True)
    about = {"suite": suite, "machine": MACHINE, "date": "2026-01-02", "commit": "abc1234", "command": "python x"}
    (folder / "gpu-x" / f"{suite}.json").write_text(json.dumps(about | document))


def row(median: float, status: str = "measured", **more) -> dict:
    """A row of schema 2 with one ratio."""
    figures = {"ratio": {"HCR / library eager": {"median": median, "low": median - 0.1, "high": median + 0.1}}}
    identity = {"commit": "def5678", "torch": "2", "settings": {}}
    about = {
        "status": status,
        "date": "2026-02-03",
        "command": "python launch/bench.py --suite archs",
        "identity": identity,
    }
    return about | ({"figures": figures} if status == "measured" else more)


def test_the_committed_page_is_the_generated_one():
    written = (PROFILES / "README.md").read_text(encoding="utf-8")
    assert written == index(), "write it anew: python -m engine.bench.pages.index"


def test_every_row_has_its_result_date_commit_and_command(tmp_path):
    rows = {
        "a": row(1.5),
        "b": row(0, "error", error="RuntimeError: no memory"),
        "c": row(0, "not available", reason="none"),
    }
    put(tmp_path, "archs", schema=2, rows=rows)
    text = index(tmp_path)
    assert "## gpu-x: NVIDIA X, 16 cores" in text
    assert "| `archs.json` | a: HCR ÷ library eager | 1.500 (1.400-1.600) | 2026-02-03 | def5678 |" in text
    assert "| b | error: RuntimeError: no memory |" in text and "| c | not available: none |" in text
    assert "# archs\npython launch/bench.py --suite archs" in text


def test_a_file_of_one_set_of_figures(tmp_path):
    runs = {"x": {"best_val_accuracy": 0.9833, "seconds": 12.3}}
    put(tmp_path, "learn", figures=runs)
    assert "| `learn.json` | x | 98.33 % val accuracy in 12 s | 2026-01-02 | abc1234 |" in index(tmp_path)


def test_many_rows_are_told_in_one_line(tmp_path):
    rows = {f"n{number}": row(1.0 + number / 100) for number in range(20)} | {"bad": row(0, "error", error="x")}
    put(tmp_path, "zoo", schema=2, rows=rows)
    text = index(tmp_path)
    assert "| 20 results | median 1.095, lowest 1 (n0: HCR ÷ library eager); 1 without a figure |" in text


def test_many_verdicts_are_counted(tmp_path):
    told = [{"right": number != 3, "summary": "no alarm"} for number in range(20)]
    rows = {f"run {number}": row(1.0) | {"figures": figures} for number, figures in enumerate(told)}
    put(tmp_path, "regressions", schema=2, rows=rows)
    assert "| `regressions.json` | 20 results | 19 of 20 as they should be |" in index(tmp_path)


def test_many_rows_without_a_figure(tmp_path):
    put(tmp_path, "zoo", schema=2, rows={f"n{number}": row(0, "error", error="x") for number in range(20)})
    assert "| `zoo.json` | 20 results | 20 without a figure |" in index(tmp_path)


def test_what_is_missing_is_listed_until_it_is_there(tmp_path):
    command = next(command for kind, suite, _, command in TO_TAKE if (kind, suite) == ("gpu", "archs"))
    assert f"`{command}`" in index(tmp_path) and "`make test-gpu`" in index(tmp_path)
    put(tmp_path, "archs", schema=2, rows={"a": row(1.0)})
    left = index(tmp_path).partition("## Still")[2]
    assert f"`{command}`" not in left and "--suite trainer" in left
    assert "make test-gpu" in left, "no file shows that tests passed"


def test_the_page_is_written_beside_the_files(tmp_path):
    assert write_index(tmp_path) == tmp_path / "README.md"
    assert (tmp_path / "README.md").read_text().startswith("# Measurements")


def test_commands_do_not_name_somebodys_folder():
    assert plain_command("python /home/a/hcr/launch/bench.py --suite zoo") == "python launch/bench.py --suite zoo"
    assert plain_command("python /x/engine/bench/learn.py nin") == "python -m engine.bench.learn nin"
