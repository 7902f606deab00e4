"""`launch/predict.py` as a person meets it: tables, a killed job that goes on, and what cannot be meant."""

import csv
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.use import prediction
from engine.use.journal import part_of
from tests.waiting import until


def shared_fixtures():
    """The weights and pictures of tests/engine/use."""
    path = Path(__file__).parents[1] / "engine" / "use" / "conftest.py"
    spec = importlib.util.spec_from_file_location("made_for_use", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = shared_fixtures()
SCRIPT = "launch/predict.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return MADE.write_weights(tmp_path_factory.mktemp("weights") / "model.safetensors")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with ten pictures and a file that is none."""
    return with_one_that_is_none(tmp_path_factory.mktemp("pictures"))


def with_one_that_is_none(folder: Path) -> Path:
    """`folder`, with ten pictures in it and a file that is called like one."""
    MADE.make_pictures(folder)
    (folder / "05b.jpg").write_bytes(b"%PDF-1.7")
    return folder


def run(*arguments) -> int:
    """In this process, which has torch loaded already."""
    return prediction.run_prediction(prediction.parse([str(argument) for argument in arguments]))


def table(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_of_each_kind_has_the_same_rows(checkpoint, pictures, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: no Parquet")
    found = {}
    for kind in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"x.{kind}"
        shape = ("--output", out, "--top-k", 2, "--precision", "fp32", "--batch-size", 4)
        assert run("--checkpoint", checkpoint, pictures, *shape) == 0
        found[kind] = table(out)
        assert not part_of(out).exists()
    assert found["jsonl"] == found["parquet"]
    for row, other in zip(found["csv"], found["jsonl"], strict=True):
        assert row["path"] == other["path"]
        assert row["reason"] == (other["reason"] or "")
        names = [row[f"class_{rank}"] for rank in (1, 2) if row[f"class_{rank}"]]
        assert names == other["classes"]
        shares = [float(row[f"probability_{rank}"]) for rank in (1, 2) if row[f"probability_{rank}"]]
        assert shares == pytest.approx(other["probabilities"], rel=1e-5)
    assert [Path(row["path"]).name for row in found["csv"]] == sorted(path.name for path in pictures.iterdir())
    assert [Path(row["path"]).name for row in found["jsonl"] if row["reason"]] == ["05b.jpg"]


def test_on_the_screen(checkpoint, pictures, capsys):
    assert run("--checkpoint", checkpoint, pictures / "00.jpg", pictures / "05b.jpg", "--top-k", 1) == 0
    said = capsys.readouterr().out
    assert "00.jpg" in said and " %" in said
    assert "unreadable: no image format that Pillow knows" in said and "2 pictures, 1 of them unreadable" in said


def test_what_is_no_picture_in_a_folder_is_counted_and_told(checkpoint, tmp_path, capsys):
    MADE.make_pictures(tmp_path, 2)
    for name in ("film.mp4", "deep/a.PDF", "deep/b.pdf", ".hidden.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert run("--checkpoint", checkpoint, tmp_path) == 0
    said = capsys.readouterr().out
    assert "2 pictures\n3 files are no pictures and were passed over (2 .pdf, 1 .mp4; such as " in said
    assert run("--checkpoint", checkpoint, tmp_path / "film.mp4", tmp_path / "00.jpg") == 0  # by its name: a row
    said = capsys.readouterr().out
    assert "film.mp4  unreadable" in said and "passed over" not in said


@pytest.mark.parametrize("written", [True, False])
def test_nothing_that_could_be_read_is_exit_code_2_with_its_rows(checkpoint, pictures, tmp_path, capsys, written):
    out = tmp_path / "x.csv"
    shape = ("--output", out) if written else ()
    assert run("--checkpoint", checkpoint, pictures / "05b.jpg", tmp_path / "nowhere.jpg", *shape) == 2
    said = capsys.readouterr()
    assert "error: no picture could be read" in said.err
    reasons = [row["reason"] for row in table(out)] if written else [said.out]
    assert all(reasons) and "no image format that Pillow knows" in reasons[0]


@pytest.mark.parametrize("name", ["e.npy", "e.safetensors"])
def test_embeddings_alone_and_the_table_on_screen(checkpoint, pictures, tmp_path, capsys, name):
    """The rows and the features that are not finished lie in files of their own."""
    assert run("--checkpoint", checkpoint, pictures, "--embeddings", tmp_path / name) == 0
    assert [path.name for path in tmp_path.iterdir() if "e." in path.name] == [name]
    assert "written to " in capsys.readouterr().out


def test_embeddings_beside_the_table(checkpoint, pictures, tmp_path):
    out, features = tmp_path / "x.csv", tmp_path / "f.npy"
    assert run("--checkpoint", checkpoint, pictures, "--output", out, "--embeddings", features) == 0
    found = np.load(features)
    assert found.shape == (11, 512)
    bad = [row["reason"] != "" for row in table(out)]
    assert np.isnan(found).all(axis=1).tolist() == bad


def test_weights_that_do_not_say_are_told_what_is_assumed(pictures, tmp_path, capsys):
    silent = MADE.write_weights(tmp_path / "model.safetensors", preprocessing=None)
    assert run("--checkpoint", silent, pictures / "00.jpg") == 0
    assert "does not say which pixels it expects; assumed: 64 px, crop 0.875, bilinear" in capsys.readouterr().out


@pytest.fixture
def slow_start(root):
    """Start the script in a process of its own; it holds after its third batch, to be met in its middle."""
    processes = []
    code = (
        "import sys, time; sys.argv[0] = 'launch/predict.py'\n"
        "from engine.use import journal\n"
        "add = journal.Journal.add\n"
        "added = []\n"
        "def held(self, rows):\n"
        "    add(self, rows)\n"
        "    added.append(rows)\n"
        "    while len(added) == 3: time.sleep(0.01)\n"
        "journal.Journal.add = held\n"
        "from engine.use.prediction import parse, run_prediction\n"
        "sys.exit(run_prediction(parse(sys.argv[1:])))\n"
    )

    def start(*arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        processes.append(subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_killed_job_goes_on_and_leaves_what_an_undisturbed_one_does(checkpoint, pictures, slow_start, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    shape = ("--checkpoint", checkpoint, pictures, "--batch-size", 2, "--precision", "fp32")
    assert run(*shape, "--output", whole, "--embeddings", tmp_path / "whole.npy") == 0
    process = slow_start(*shape, "--output", cut, "--embeddings", tmp_path / "cut.npy")
    until(
        lambda: part_of(cut).exists() and len(part_of(cut).read_bytes().splitlines()) >= 5,
        [process],
        process.communicate,
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cut.exists() and not (tmp_path / "cut.npy").exists()
    assert 5 <= len(part_of(cut).read_bytes().splitlines()) < 12
    assert run(*shape, "--output", cut, "--embeddings", tmp_path / "cut.npy") == 0
    assert cut.read_bytes() == whole.read_bytes()
    assert (tmp_path / "cut.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not part_of(cut).exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checkpoint", "{weights}", "{empty}"], "holds no pictures"),
        (["--checkpoint", "{weights}", "{pictures}", "--output", "{there}"], "exists; remove it, or give another name"),
        (["--checkpoint", "{weights}", "{pictures}", "--output", "{empty}/x.xlsx"], "ends in .csv, .jsonl, .parquet"),
        (["--checkpoint", "{weights}", "{pictures}", "--output", "{empty}/no/x.csv"], "there is no folder"),
        (["--checkpoint", "{weights}", "{pictures}", "--embeddings", "x.pkl"], "ends in .npy or .safetensors"),
        (["--checkpoint", "{empty}/nowhere", "{pictures}"], "neither a run folder"),
        (["{pictures}"], "--checkpoint is needed"),
        (["--checkpoint", "{weights}", "-"], "standard input ended before it named a picture"),
        (["--checkpoint", "{weights}", "{pictures}", "--precision", "fp16"], "--precision fp16 needs a GPU"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence_and_leaves_nothing(
    checkpoint, pictures, tmp_path, monkeypatch, capsys, arguments, told
):
    import io

    from launch import predict

    names = {"weights": checkpoint, "pictures": pictures, "empty": tmp_path / "empty", "there": tmp_path / "there.csv"}
    names["empty"].mkdir()
    names["there"].write_text("mine")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    monkeypatch.setattr("sys.argv", ["predict.py", *(argument.format(**names) for argument in arguments)])
    try:
        code = predict.main()
    except SystemExit as error:  # a value that the parser refuses by itself
        code = error.code
    assert code == 2
    said = capsys.readouterr().err
    assert told in " ".join(said.split()) and "Traceback" not in said
    assert names["there"].read_text() == "mine" and not list(names["empty"].iterdir())


def test_the_script_itself(launch, checkpoint, pictures, tmp_path):
    done = launch("--checkpoint", checkpoint, pictures, "--output", tmp_path / "x.csv", script=SCRIPT)
    assert "11 pictures, 1 of them unreadable" in done.stdout and "Traceback" not in done.stderr
