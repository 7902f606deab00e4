"""JSON Lines that survive a kill at any byte."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from engine.runs.records import RecordWriter, read_records
from tests.waiting import until


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RecordWriter(path) as writer:
        writer.write({"a": 1, "b": [0.5, "ö"], "c": None})
        writer.write({"a": np.float32(0.25), "b": np.int64(3)})
    assert read_records(path) == [{"a": 1, "b": [0.5, "ö"], "c": None}, {"a": 0.25, "b": 3}]


def test_numbers_that_json_lacks_are_null(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RecordWriter(path) as writer:
        writer.write({"loss": float("nan"), "deep": {"x": [float("inf"), 1.0]}, "scalar": np.float32("nan")})
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"loss": None, "deep": {"x": [None, 1.0]}, "scalar": None}


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_last_line_torn_anywhere_costs_only_itself(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    with RecordWriter(path) as writer:
        writer.write({"step": 1})
        writer.write({"step": 222})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    survivors = [{"step": 1}, {"step": 222}] if cut == 1 else [{"step": 1}]  # at 1 only the newline is gone
    assert read_records(path) == survivors
    with RecordWriter(path) as writer:
        writer.write({"step": 3})
    assert read_records(path) == [*survivors, {"step": 3}]
    assert path.read_bytes().count(b"\n") == len(survivors) + 1


def test_foreign_lines_are_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste\n\x00\x00\xff\n[1, 2]\n\n7\n{"step": 2}\n')
    assert read_records(path) == [{"step": 1}, {"step": 2}]


def test_no_file_is_no_rows(tmp_path):
    assert read_records(tmp_path / "absent.jsonl") == []


def test_a_killed_writer_leaves_at_most_one_torn_line(tmp_path, root):
    path = tmp_path / "rows.jsonl"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom engine.runs.records import RecordWriter\n"
        "writer, step = RecordWriter(Path(sys.argv[2])), 0\n"
        "while True: writer.write({'step': step, 'filler': 'x' * 500}); step += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(root), str(path)])
    try:
        until(lambda: path.is_file() and path.stat().st_size > 50_000, [process])
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    steps = [row["step"] for row in read_records(path)]
    assert steps == list(range(len(steps)))
    assert len(path.read_bytes().split(b"\n")) - 1 == len(steps)  # every newline ends a whole row
