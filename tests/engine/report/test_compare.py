"""The page and the table: complete on any run, self-contained, escaped, accessible."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import engine.report.compare
from engine.report.compare import ALT_TEXTS, summary_table, write_report
from engine.report.evaluation_report import write_evaluation
from engine.report.page import LISTED
from engine.runs.history import NotARun
from tests.waiting import PATIENCE

PIXEL = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements of a page; fails on a tag that is closed out of order or never."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture
def page_of(monkeypatch):
    """page_of(folder): its page, written with one stand-in for all charts (drawing them is most of the time)."""
    monkeypatch.setattr(
        engine.report.compare, "draw", lambda history, theme: {"accuracy": PIXEL} if history.steps else {}
    )

    def write(folder):
        path = write_report(folder)
        assert path == folder / "report.html"
        return Page(path.read_text(encoding="utf-8"))

    return write


@pytest.fixture
def page(drawn_run):
    """The page of the finished run."""
    return Page((drawn_run / "report.html").read_text(encoding="utf-8"))


def test_planned_memory_is_shown_where_there_is_a_picture_of_it(make_run, page_of):
    folder = make_run()
    told = "planned memory over one training step"
    assert not any(told in image["alt"] for image in page_of(folder).all("img"))
    (folder / "memory.png").write_bytes(PIXEL)
    assert any(told in image["alt"] for image in page_of(folder).all("img"))


def test_a_finished_run(page, drawn_run):
    plots = {path.stem for path in (drawn_run / "plots").glob("*.png")}
    assert plots == set(ALT_TEXTS)
    assert len(page.all("picture")) == len(plots)
    for text in ("finished", "resnext50 on digits", "3 / 3", "7.50 GiB", "of 12.00 GiB", "NVIDIA GeForce RTX 4070"):
        assert text in page.words
    for text in ("train/cat/1.jpg", "BatchNorm sees micro-batches of 64 images", "cosine", "87.7 MiB", "torch 2.15.0"):
        assert text in page.words
    best = max(
        json.loads(line).get("val_accuracy", 0) for line in (drawn_run / "metrics.jsonl").read_text().splitlines()
    )
    assert f"{100 * best:.2f} %" in page.words
    assert page.words.count("(best)") == 1


def test_the_page_needs_nothing_but_itself(page, drawn_run):
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "srcset", "href", "poster", "action"):
            if name in attributes:
                assert attributes[name].startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    text = (drawn_run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_each_chart_comes_light_and_dark(page, drawn_run):
    light = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")]
    dark = [base64.b64decode(source["srcset"].partition(",")[2]) for source in page.all("source")]
    assert all(picture.startswith(b"\x89PNG") for picture in light + dark)
    assert len(set(light + dark)) == 2 * len(ALT_TEXTS)
    assert (drawn_run / "plots" / "accuracy.png").read_bytes() in light
    assert all(source["media"] == "(prefers-color-scheme: dark)" for source in page.all("source"))


def test_a_reader_who_does_not_see_the_charts(page):
    assert all(len(image["alt"]) > 10 for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    named = {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert named <= set(identities)
    scrolling = [attributes for _, attributes in page.elements if "scroll" in attributes.get("class", "").split()]
    assert all(area["tabindex"] == "0" and {"aria-label", "aria-labelledby"} & set(area) for area in scrolling)


ATTACK = "<script>alert('1')</script>\"'&{{ 7 * 7 }}"


def test_nothing_that_a_run_says_becomes_markup(make_run, metrics, page_of):
    rows = metrics(1)
    rows.append({"kind": "event", "event": "bad_image", "path": ATTACK, "reason": ATTACK, "time": 1.0})
    rows.append({"kind": "event", "event": ATTACK, ATTACK: ATTACK, "time": 1.0})
    config = f"model: {{arch: {json.dumps(ATTACK)}}}\n{json.dumps(ATTACK)}: {json.dumps(ATTACK)}\n"
    folder = make_run(
        "<b>&", rows=rows, config=config, plan={"device_name": ATTACK, ATTACK: [ATTACK], "changes": [ATTACK]}
    )
    write_evaluation(folder / "evaluation", np.array([[3, 1], [0, 4]]), [ATTACK, "b"], 0.1, 7 / 8, 1.0, 8)
    page = page_of(folder)
    assert page.all("script") == []
    assert page.all("b") == []
    assert page.words.count(ATTACK) >= 9


@pytest.mark.parametrize("kept", [0, 1, 3, 5, 6])
def test_a_run_that_is_cut_off_anywhere(make_run, metrics, page_of, kept):
    page = page_of(make_run(rows=metrics(2)[:kept]))
    assert "unfinished" in page.words
    assert ("No epoch has ended yet." in page.words) == (kept < 6)
    assert ("Nothing has been logged yet." in page.words) == (kept < 2)


def test_a_folder_with_only_metrics(make_run, metrics, page_of):
    page = page_of(make_run(rows=metrics(1), config=None, plan=None))
    assert "Config" not in page.words
    assert "1" in page.words


def test_a_folder_with_only_a_config(make_run, page_of):
    folder = make_run()
    (folder / "metrics.jsonl").unlink()
    (folder / "plan.json").unlink()
    assert "0 / 1" in page_of(folder).words


def test_a_resumed_run_has_each_epoch_once(make_run, metrics, host_rows, page_of):
    rows = metrics(3)
    again = {"kind": "event", "event": "resume", "step": 80, "time": rows[-1]["time"] + 500}
    rows = [*rows[:13], again, *rows[11:]]
    page = page_of(make_run(rows=rows, monitor=host_rows(5) + host_rows(5)))
    assert "resumed" in page.words
    assert page.words.count("8.4 s") == 3


def test_a_diverged_run_says_so(make_run, metrics, page_of):
    event = {"kind": "event", "event": "nan", "step": 20, "lr": 0.1, "checkpoint": "none yet", "time": 9.0}
    last = {"kind": "step", "step": 20, "epoch": 0.5, "loss": float("nan"), "time": 8.0}
    rows = [*metrics(1)[:2], last, event]
    page = page_of(make_run(rows=rows))
    assert "stopped: loss not finite" in page.words
    assert "checkpoint none yet" in page.words


def test_an_evaluation_in_the_folder_is_shown(make_run, whole_rows, page_of):
    whole = make_run(rows=whole_rows)
    matrix = np.diag([9, 9, 9])
    matrix[0, 2] = 3
    write_evaluation(whole / "evaluation", matrix, ["ant", "bee", "cow"], 0.2, 27 / 30, 1.0, 30)
    page = page_of(whole)
    assert "90.00 % of 30 images right" in page.words
    assert re.search(r"ant cow 3 25\.00 %", page.words)
    assert any("confusion matrix" in image["alt"] for image in page.all("img"))


def test_long_lists_are_cut_and_counted(make_run, metrics, page_of):
    bad = [{"kind": "event", "event": "bad_image", "path": f"{n}.jpg", "reason": "cut"} for n in range(LISTED + 50)]
    page = page_of(make_run(rows=metrics(1) + bad))
    assert f"The first {LISTED} of {LISTED + 50}" in page.words
    assert page.words.count(".jpg") == LISTED


def test_writing_again_replaces_the_page(make_run, whole_rows, page_of):
    whole = make_run(rows=whole_rows)
    first = page_of(whole).words
    with (whole / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "event": "resume", "step": 120, "time": 1800000000}\n')
    second = page_of(whole).words
    assert "resumed" in second
    assert "resumed" not in first
    assert [path.name for path in whole.iterdir() if path.name.startswith(".")] == []


def test_the_table_compares_runs(make_run, metrics, finished, gpu_rows):
    one = make_run("one", rows=finished(metrics(10)), monitor=gpu_rows(30))
    two = make_run("two", rows=metrics(1)[:2])
    head, first, second = summary_table([one, two]).splitlines()
    assert head.split()[:4] == ["run", "arch", "data", "epochs"]
    assert re.match(r"one +resnext50 +digits +10 / 10 +9\d\.\d\d % +(9|10) ", first)
    assert "7.50 GiB" in first
    assert first.endswith("finished")
    assert re.match(r"two +resnext50 +digits +0 / 1 +– +– +– ", second)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(NotARun, match="is not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def launch(root, *arguments):
    command = [sys.executable, str(root / "launch" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_the_command(root, make_run, metrics):
    one, two = make_run("one", rows=metrics(1)[:2]), make_run("two", rows=metrics(1)[:3])
    done = launch(root, one, two)
    assert done.returncode == 0
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run", "one", "two", "report", "report"]
    assert all((folder / "report.html").is_file() for folder in (one, two))


def test_the_command_refuses_what_is_no_run(root, tmp_path):
    done = launch(root, tmp_path / "absent")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no such folder" in done.stderr


def test_help_loads_neither_torch_nor_matplotlib(root):
    program = (
        "import runpy, sys\n"
        "path, sys.argv = sys.argv[1], ['report.py', '--help']\n"
        "try:\n    runpy.run_path(path, run_name='__main__')\n"
        "except SystemExit as leave:\n    assert leave.code == 0\n"
        "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(root / "launch" / "report.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "RUN" in done.stdout
