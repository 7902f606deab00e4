"""A decoder that crashes in native code: the file is found at the next start, and the run goes on without it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.decoding_watch import Crash, DecodingWatch, crashes_in, forget_crashes
from engine.train.decoder_crash import PILLOW, culprits

ROOT = Path(__file__).resolve().parents[3]
DALI_CRASHES = """
import os, signal
from engine.data import bad_images
load = bad_images.ImageFiles.load

def crashing(files, index):
    if "crashes" in files.split.path(index) and index not in files.by_pillow:
        os.kill(os.getpid(), signal.SIGSEGV)
    return load(files, index)

bad_images.ImageFiles.load = crashing
"""
"""A file that only Pillow survives. Put before any program by Python itself, as sitecustomize."""
PILLOW_CRASHES = """
import os, signal
from engine.data import bad_images
decode = bad_images.decode

def crashing(data):
    if data[-7:] == b"crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(data)

bad_images.decode = crashing
"""


def photographs(folder: Path) -> Path:
    """Two classes of small JPEGs, and crashes.jpg among them."""
    for split, count in (("train", 12), ("val", 4)):
        for name in ("a", "b"):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpg")
    path = folder / "train" / "b" / "crashes.jpg"
    path.write_bytes((folder / "train" / "b" / "0.jpg").read_bytes() + b"crashes")
    return folder


def train(tmp_path: Path, first: str, *flags: str) -> subprocess.CompletedProcess:
    (tmp_path / "first").mkdir(exist_ok=True)
    (tmp_path / "first" / "sitecustomize.py").write_text(first)
    paths = os.pathsep.join([str(tmp_path / "first"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "launch/train.py", "--arch", "resnet18", "--image-size", "32", "--batch-size", "8"]
    command += ["--epochs", "1", "--precision", "fp32", "--log.no-plots", *flags]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": paths}
    )


@pytest.mark.parametrize("backend", ["dali", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_a_run_goes_on_without_the_picture_that_crashes_its_decoder(tmp_path, backend):
    dali = backend == "dali"
    root = photographs(tmp_path / "data")
    run, first = tmp_path / "run", DALI_CRASHES if dali else PILLOW_CRASHES
    flags = ("--data.root", str(root), "--data.backend", backend, "--data.workers", "1", "--output", str(run))
    crashed = train(tmp_path, first, *flags)
    assert crashed.returncode == (-signal.SIGSEGV if dali else 2), crashed.stderr
    assert dali or "go on with --resume" in crashed.stderr
    assert len(crashes_in(run)) == 1
    again = train(tmp_path, first, "--resume", str(run))
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"in native code ({'Segmentation fault' if dali else 'ended without a word'})" in again.stdout
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (event,) = [row for row in rows if row.get("event") == "decoder_crash"]
    assert event["path"].endswith("crashes.jpg") and event["signal"]
    (finished,) = [row for row in rows if row.get("event") == "finished"]
    assert finished["unreadable_images"] == (0 if dali else 1)  # Pillow decodes it where that does not crash
    assert not [path.name for path in run.iterdir() if path.name.startswith((".crash", ".decoding"))]


def test_what_is_decoded_is_known_after_the_end(tmp_path):
    program = (
        "import os, pathlib, sys; from engine.data.decoding_watch import DecodingWatch\n"
        "watch = DecodingWatch(pathlib.Path(sys.argv[1]), 3)\n"
        "watch.note('train', ['a.jpg', 'b\\udcff.jpg' * 50]); watch.note('val', ['c.jpg'])\n"
        "watch.note('train', ['d.jpg'])\n"
        "os.kill(os.getpid(), int(sys.argv[2]))"
    )
    for number, found in ((signal.SIGSEGV, ["Segmentation fault"]), (signal.SIGKILL, [])):
        subprocess.run([sys.executable, "-c", program, str(tmp_path), str(int(number))], cwd=ROOT, check=False)
        crashes = crashes_in(tmp_path)
        assert [crash.signal for crash in crashes] == found
        assert all(crash.decoding == {"train": ["d.jpg"], "val": ["c.jpg"]} for crash in crashes)
        assert all(crash.rank == 3 for crash in crashes)
        forget_crashes(tmp_path)
        assert not list(tmp_path.iterdir())


def test_an_end_in_words_leaves_nothing(tmp_path):
    watch = DecodingWatch(tmp_path, 0)
    watch.note("train", ["a.jpg"])
    watch.close()
    watch.close()
    assert not list(tmp_path.iterdir())
    gone = DecodingWatch(tmp_path / "not there", 0)
    gone.note("train", ["a.jpg"])
    gone.close()


@pytest.mark.parametrize("torn", [b"", b"12", b"              90{", b"x" * 40])
def test_a_torn_list_names_no_image(tmp_path, torn):
    (tmp_path / ".crash-0").write_text("Fatal Python error: Bus error\n\nCurrent thread ...\n")
    (tmp_path / ".decoding-0").write_bytes(torn)
    assert crashes_in(tmp_path) == [Crash(0, "Bus error", {})]


def dying_with(together: set[str], alone: set[str], by_pillow: set[str]):
    """A decoder that dies with certain images."""

    def decodes(split, names, way):
        if way == "together":
            return names[0] if together and together <= set(names) else decodes(split, names, "singly")
        return next((name for name in names if name in (by_pillow if way == "pillow" else alone)), None)

    return decodes


def test_images_that_crash_only_together_all_go_to_pillow():
    found = culprits(Crash(0, "x", {"train": ["c", "a", "b"]}), dying_with({"a", "b"}, set(), set()))
    assert found == dict.fromkeys(["c", "a", "b"], PILLOW)


def test_each_culprit_of_a_group_is_found():
    crash = Crash(0, "Aborted", {"train": list("abcde"), "val": ["c"]})
    found = culprits(crash, dying_with(set(), {"b", "d"}, {"b"}))
    assert found == {"b": "crashes the decoder: Aborted", "d": PILLOW}
