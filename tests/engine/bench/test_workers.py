"""Processes that tell one thing in their last line."""

import pytest

from engine.bench.instrument import workers
from engine.bench.instrument.workers import Worker


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(code) is the name of a module that a worker can run."""
    monkeypatch.setattr(workers, "ROOT", tmp_path)

    def write(code: str) -> str:
        (tmp_path / "made.py").write_text("import json, sys\ngiven = json.loads(sys.argv[1])\n" + code)
        return "made"

    return write


def test_the_last_line_is_the_result(module):
    assert Worker(module("print('noise')\nprint(json.dumps(given | {'b': 2}))"), {"a": 1}).result() == {"a": 1, "b": 2}


def test_a_talkative_process_is_not_stopped_by_what_it_says(module):
    """A pipe that nobody reads holds 64 KiB."""
    code = "for _ in range(4096):\n    print('w' * 100, file=sys.stderr)\nprint(json.dumps({}))"
    assert Worker(module(code), {}).result() == {}


def test_a_failure_is_told_by_its_last_words(module):
    assert Worker(module("raise ValueError('no such layer')"), {}).result() == {"error": "ValueError: no such layer"}
    assert Worker(module("sys.exit(7)"), {}).result() == {"error": "ended with 7"}


def test_one_that_hangs_can_be_ended(module):
    worker = Worker(module("import time\ntime.sleep(600)"), {})
    assert not worker.ended()
    worker.end()
    assert worker.ended()
