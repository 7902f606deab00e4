"""What hypothesis tries: values for every field, files of a run folder, weights and their metadata, class folders.

Whatever is tried ends well, or in one sentence of ours that names the field or the path, and within SECONDS.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hypothesis import strategies as st

from engine.config import ConfigError, from_yaml, parse
from engine.config.run_config import field_names, flags
from engine.data.sources.source import DataError

SECONDS = 30
"""Of one case, on a busy machine."""
WORDS = ["off", "on", "yes", "no", "true", "null", "~", "none", "auto", "", " ", "inf", "-inf", "nan", "1e999", "0x10"]
WORDS += [
    "1_000",
    "1:30",
    "2001-01-01",
    "é",
    "e\u0301",
    "\u202e",
    "😀",
    "0",
    "-1",
    "-0.0",
    "1e-320",
    "99999999999999999999",
]

ODD = [0, -1, 2**31, 10**20, 1e308, float("inf"), float("-inf"), float("nan"), True, None, "", "é\u202e", "a\0b"]
ODD += ["x" * 5000, [], [float("nan")], [-1, 10**20, 1e400, 3], {}, {"a": {"b": 1}}, "off", "1e999"]
"""For each field."""

numbers = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**11, 1e308, -1e308, float("inf"), float("nan")]),
)
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=12), st.just("x" * 5000), st.just("a\0b"))
values = st.one_of(
    numbers, texts, st.booleans(), st.none(), st.lists(numbers, max_size=3), st.dictionaries(texts, texts)
)


@contextmanager
def in_time() -> Iterator[None]:
    """Raise TimeoutError inside after SECONDS."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"a case takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(error: Exception, *names: str) -> None:
    """Assert that a refusal is one sentence that names what it is about."""
    text = str(error)
    assert text and "Traceback" not in text and "weights_only" not in text, text
    assert any(name in text for name in names), f"{text!r} names none of {names}"


def by_yaml(folder: Path, name: str, value: Any) -> None:
    """A description with one field set to anything."""
    group, _, leaf = name.rpartition(".")
    path = folder / "fuzz.yaml"
    try:
        path.write_text(yaml.safe_dump({group: {leaf: value}} if group else {leaf: value}), encoding="utf-8")
    except (yaml.YAMLError, UnicodeEncodeError):
        return
    with in_time():
        try:
            from_yaml(path)
        except ConfigError as error:
            refused(error, leaf, flags()[name], "cannot be read", "unknown key")


def by_text(folder: Path, text: str) -> None:
    """A description that is any text at all."""
    path = folder / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with in_time():
        try:
            from_yaml(path)
        except ConfigError as error:
            refused(error, "fuzz.yaml")


def by_flag(name: str, value: str) -> None:
    """A command line with one flag set to anything."""
    if name in ("config", "resume"):
        return
    said = io.StringIO()
    with in_time(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parse([flags()[name], value])
        except SystemExit as ended:
            assert ended.code in (0, 2), said.getvalue()
            assert ended.code == 0 or said.getvalue().strip(), "refused without a word"
        except ConfigError as error:
            refused(error, name.rpartition(".")[2], flags()[name])
    assert "Traceback" not in said.getvalue()


FILES = ("config.yaml", "plan.json", "metrics.jsonl", "monitor.jsonl", "model.safetensors", ".owner")
HARMS = ("cut", "emptied", "garbage", "flipped", "link to itself", "broken link", "folder", "gone", "unreadable name")


def harm(run: Path, name: str, what: str, place: float, noise: bytes) -> None:
    """Do something to one file of a run folder."""
    path = run / name
    data = bytearray(path.read_bytes())
    if what == "cut":
        path.write_bytes(data[: int(place * len(data))])
    elif what == "emptied":
        path.write_bytes(b"")
    elif what == "garbage":
        path.write_bytes(noise)
    elif what == "flipped" and data:
        data[int(place * (len(data) - 1))] ^= 1 + int(place * 254)
        path.write_bytes(data)
    elif what in ("link to itself", "broken link", "folder", "gone"):
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what != "gone":
            path.symlink_to(path.name if what == "link to itself" else "nowhere")
    elif what == "unreadable name":
        (run / os.fsdecode(b"\xff" + noise[:5].replace(b"/", b"").replace(b"\0", b""))).touch()


def read_all(run: Path) -> None:
    """Everything that opens a run folder: resume, evaluate, --pretrained, report's reader."""
    from engine.recovery.checkpoint import newest_whole, read_state
    from engine.report.compare import summary_table
    from engine.runs.history import NotARun, read_history
    from engine.runs.runfolder import RunFolder
    from engine.step.weights.files import file_metadata, named_classes, read_weight_file
    from engine.use.weights import read_weights

    def attempt(work: Any) -> None:
        try:
            work()
        except (ConfigError, DataError, NotARun) as error:
            refused(error, str(run), run.name)

    def resume() -> None:
        RunFolder.open(run).close()
        found, _ = newest_whole(run / "checkpoints")
        if found is not None:
            read_state(found / "trainer.pt")

    def report() -> None:
        read_history(run)
        summary_table([run])

    with in_time():
        attempt(resume)
        attempt(lambda: read_weights(run))
        attempt(lambda: read_weight_file(run, f"--pretrained {run}"))
        attempt(lambda: named_classes(file_metadata(run), f"--pretrained {run}"))
        attempt(report)


def odd_metadata(path: Path, tensors: dict, metadata: dict[str, str]) -> None:
    """A weights file that says anything of itself."""
    from safetensors.torch import save_file

    from engine.step.weights.files import file_metadata, named_classes
    from engine.use.weights import read_weights

    try:
        save_file(tensors, path, metadata=metadata)
    except Exception:  # text that the format cannot hold
        return
    with in_time():
        for look in (lambda: named_classes(file_metadata(path), str(path)), lambda: read_weights(path).build()):
            try:
                look()
            except ConfigError as error:
                refused(error, str(path), path.name)


ROWS = st.dictionaries(
    st.sampled_from(["kind", "event", "step", "epoch", "loss", "accuracy", "val_accuracy", "time", "lr", "path", "x"]),
    st.one_of(values, st.sampled_from(["step", "epoch", "event", "start", "resume", "bad_image", "finished", 1, 2])),
    max_size=8,
)


def odd_rows(run: Path, rows: list) -> None:
    """A metrics.jsonl with anything in it: read, and drawn as a page."""
    from engine.report.compare import summary_table
    from engine.report.page import page_facts
    from engine.runs.history import read_history

    lines = [json.dumps(row, default=str) if isinstance(row, dict) else str(row) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    with in_time():
        page_facts(read_history(run))
        summary_table([run])


def odd_facts(run: Path, config: dict, plan: dict) -> None:
    """A config.yaml and a plan.json with anything in them: drawn as a page, a table and a leaderboard."""
    from engine.report.compare import summary_table
    from engine.report.leaderboard import leaderboard
    from engine.report.leaderboard_files import as_csv, as_markdown, as_page, terminal_table
    from engine.report.page import page_facts
    from engine.runs.history import read_history

    try:
        (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    except (yaml.YAMLError, UnicodeEncodeError):
        return
    with in_time():
        page_facts(read_history(run))
        summary_table([run])
        lines = leaderboard([run])
        for show in (as_page, as_markdown, as_csv, terminal_table):
            show(lines)


def odd_ranges(folder: Path, name: Any, told: Any) -> None:
    """A sweep's YAML with any range of any field."""
    from engine.config import RunConfig
    from engine.train.sweep.space import read_space

    path = folder / "ranges.yaml"
    try:
        path.write_text(yaml.safe_dump({name: told}), encoding="utf-8")
    except (yaml.YAMLError, UnicodeEncodeError):
        return
    with in_time():
        try:
            read_space(path, RunConfig())
        except ConfigError as error:
            refused(error, "ranges.yaml")


def odd_rates(text: str) -> None:
    """--find-lr with any text."""
    from engine.train.lr_range import FLAG, asked

    with in_time():
        try:
            asked([FLAG, text])
        except ConfigError as error:
            refused(error, FLAG)


CLASSES = ["a", "b", ".b", "__MACOSX", "é", "e\u0301", os.fsdecode(b"\xff"), "a b", "-x", "x" * 200, "a\nb"]
PICTURES = ["1.jpg", "1.JPG", ".2.jpg", "x.txt", "1.gif", "1.heic", "", os.fsdecode(b"\xe9.png"), "d.jpg/1.jpg"]
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(["train", "val", "", "test", ".hidden", "train/a", "val/a"]),
        st.sampled_from(CLASSES),
        st.sampled_from(PICTURES),
        st.sampled_from(["file", "folder", "link up", "link to itself", "broken link", "fifo"]),
    ),
    max_size=10,
)


def odd_folders(root: Path, entries: list[tuple[str, str, str, str]]) -> None:
    """A data folder of any shape: listed for training and for evaluation."""
    from engine.data.fingerprint import fingerprint_of
    from engine.data.sources.folder import read_folder
    from engine.data.sources.found import source_to_evaluate
    from engine.data.sources.open import open_source

    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for split, name, file, kind in entries:
        folder = root / split / name
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / file if file else folder / "more"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.touch()
            elif kind == "folder":
                path.mkdir()
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                path.symlink_to({"link up": "../..", "link to itself": path.name, "broken link": "nowhere"}[kind])
    with in_time():
        for work in (lambda: open_source("folder", root), lambda: source_to_evaluate(read_folder(root), None)):
            try:
                fingerprint_of(work())
            except DataError as error:
                refused(error, str(root))


NAMES = [name for name in field_names() if name not in ("config", "resume")]
names = st.sampled_from(NAMES)
RANGES = st.one_of(
    values,
    st.dictionaries(
        st.sampled_from(["log", "uniform", "int", "choice", "grid"]),
        st.one_of(values, st.lists(st.one_of(values, st.sampled_from(["1e-4", 0.1, 1, 8, "on"])), max_size=3)),
        max_size=2,
    ),
)
GROUPS = sorted({name.partition(".")[0] for name in field_names()})
PLAN = ["micro_batch_size", "accumulation", "ranks", "zero_stage", "global_batch_size", "precision", "recompute", "x"]
TREES = st.dictionaries(
    st.sampled_from(GROUPS),
    st.one_of(values, st.dictionaries(st.sampled_from([n.rpartition(".")[2] for n in field_names()]), values)),
    max_size=5,
)
