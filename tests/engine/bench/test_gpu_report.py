"""The report of a machine: suites in order of value within a budget, one table, one page; what it does without."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.bench.contact import AFTER, STEPS, Step
from engine.bench.instrument import precompile, record
from engine.bench.instrument.energy import energy_counter
from engine.bench.instrument.options import Options
from engine.bench.instrument.sides import Side
from engine.bench.pages import gpu_report

ROOT = Path(__file__).resolve().parents[3]


def contender(rate: float, share: float) -> dict:
    """Figures of one side."""
    return {"images_per_second": rate, "step_seconds": 1 / rate, "share_of_floor": share}


@pytest.fixture
def folder(tmp_path):
    """Result files of this machine: two suites, a row of each kind."""
    place = tmp_path / record.machine()["key"]
    place.mkdir()
    measured = {"status": "measured", "date": "2026-01-01", "command": "python x", "identity": {"commit": "abc"}}
    ratio = {"median": 1.25, "low": 1.2, "high": 1.3}
    contenders = {
        "HCR": contender(1000.0, 0.4),
        "library eager": contender(800.0, 0.32),
        "tutorial loop": contender(250.0, 0.1),
    }
    floor = {"floor_seconds": 0.0004, "bound": "traffic"}
    figures = {"ratio": {"HCR / library eager": ratio}, "contenders": contenders, "floor": floor}
    rows = {
        "net <b> train": measured | {"figures": figures},
        "other": {"status": "error", "error": "OutOfMemoryError: x"},
    }
    about = {"schema": 2, "machine": record.machine()}
    (place / "archs.json").write_text(json.dumps(about | {"suite": "archs", "rows": rows, "not_reached": ["late net"]}))
    zoo = {"vgg11": measured | {"figures": {"ratio": ratio | {"median": 0.91}, "saved_ratio": 1.0}}}
    (place / "zoo.json").write_text(json.dumps(about | {"suite": "zoo", "rows": zoo}))
    gone = {"loader": {"status": "not available", "reason": "nvidia is not installed"}}
    (place / "loader.json").write_text(json.dumps(about | {"suite": "loader", "rows": gone}))
    return place


def test_one_table_over_all_suites(folder):
    lines = gpu_report.summary(folder).splitlines()
    assert any("net <b> train" in line and "1.250" in line and "40 %" in line for line in lines)
    assert any("other" in line and "error" in line for line in lines)
    assert any("loader" in line and "nvidia is not installed" in line for line in lines)
    assert any("1 rows" in line and "not reached" in line for line in lines)


def test_one_page_that_needs_nothing_else(folder):
    page = gpu_report.write_page(folder, ["only 3.0 of the GPU's 80.0 GiB are free"]).read_text()
    assert "net &lt;b&gt; train" in page and "<b>" not in page
    assert "width: 100.0%" in page and "width: 80.0%" in page and "width: 25.0%" in page, "bars against the fastest"
    assert "40 % of floor" in page and "set by traffic" in page
    assert "0.910" in page and "OutOfMemoryError: x" in page and "late net" in page and "only 3.0 of" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"


def test_the_report_ends_with_a_table_that_fits_and_a_page(folder, monkeypatch):
    monkeypatch.setattr(gpu_report, "looked_at", lambda dry_run: (folder.name, ["a note"]))
    monkeypatch.setattr(gpu_report, "LONGEST", 250)
    said: list[str] = []
    steps = (Step("good", 600.0, ("-c", "print('well')")), Step("bad", 600.0, ("-c", "raise SystemExit(3)")))
    assert gpu_report.gpu_report(Options(budget=600.0, output=folder.parent), said.append, steps) == 1
    assert said[0] == "note: a note" and said[1].startswith("good: passed") and said[1].endswith("; well")
    assert "net <b> train" in said[-3] and len(said[-3]) < 250 + len(str(folder))
    assert said[-3].endswith(f"... the rest is in {folder}")
    assert [line.split()[:2] for line in said[-2].splitlines()[1:]] == [["good", "passed"], ["bad", "failed"]]
    assert said[-1] == f"page {folder / 'report.html'}"


def test_a_gpu_that_another_process_fills_is_told(monkeypatch):
    monkeypatch.setattr(gpu_report, "use_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 80 * 2**30))
    (note,) = gpu_report.machine_notes()
    assert "only 3.0 of the GPU's 80.0 GiB are free: another process" in note
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 * 2**30, 80 * 2**30))
    assert gpu_report.machine_notes() == []


class NoNvml:
    """NVML without a driver, or with one that does not let this user read the energy counter."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_FunctionNotFound(NVMLError):
        pass

    def __init__(self, driver: bool) -> None:
        self.driver = driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def __getattr__(self, name: str):
        def refuse(*_: object) -> object:
            if name.startswith("nvmlDeviceGetHandle"):
                return "handle"
            raise self.NVMLError("Insufficient Permissions")

        return refuse


def test_energy_without_nvml_or_permission(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-1"))
    counter, why = energy_counter(torch.device("cuda"), NoNvml(driver=False))
    assert counter is None and why == "energy is not measured: no NVIDIA driver answers (Driver Not Loaded)"
    counter, why = energy_counter(torch.device("cuda"), NoNvml(driver=True))
    assert counter is None and "permission" in why
    assert energy_counter(torch.device("cpu"))[0] is None


def test_compiling_ahead_packs_jobs_into_memory(monkeypatch):
    """The largest that fits begins; two that are too large together do not run at once; a failure is told."""
    monkeypatch.setattr(precompile, "Hardware", SimpleNamespace(detect=lambda: SimpleNamespace(type="cuda")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 100))
    monkeypatch.setattr(precompile.os, "cpu_count", lambda: 9)
    side = Side("hcr:x", "fp32", True, compile="inductor")
    jobs = {size: precompile.Job(f"job {size}", side, "train", 1, 1, float(size)) for size in (60, 50, 20, 200)}
    monkeypatch.setattr(precompile, "jobs_of", lambda settings, sides: [jobs[settings["size"]]])
    running: list[int] = []
    at_once: list[set[int]] = []

    class Process:
        def __init__(self, size: int) -> None:
            self.size, self.left, self.returncode = size, 2, int(size == 20)
            running.append(size)
            at_once.append(set(running))

        def ended(self):
            self.left -= 1
            if self.left > 0:
                return False
            running.remove(self.size) if self.size in running else None
            return True

        def result(self):
            return {"error": "RuntimeError: no compiler"} if self.returncode else {"first_step_seconds": 1.0}

    monkeypatch.setattr(precompile, "start", lambda job, at_once: Process(int(job.bytes)))
    monkeypatch.setattr(precompile.time, "sleep", lambda seconds: None)
    listed = [{"size": size} for size in jobs]
    told = precompile.fill_cache(listed, lambda settings: {}, 100.0, float("inf"))
    assert at_once[0] == {200}, "what fits nowhere runs alone, and may fail by itself"
    assert {60, 20} in at_once and not any({60, 50} <= one for one in at_once)
    assert told["jobs"]["job 60"] == {"first_step_seconds": 1.0} and told["jobs"]["job 20"]["error"].endswith(
        "no compiler"
    )
    assert precompile.fill_cache(listed, lambda settings: {}, 0.0, float("inf"))["not_begun"]


BLOCKED = ("tyro", "deepspeed", "nvidia.dali", "pydantic")


HIDE = """
import importlib.metadata, importlib.util, sys

find_spec, from_name = importlib.util.find_spec, importlib.metadata.Distribution.from_name

def hidden(name):
    return any(name == one or name.startswith(one + ".") for one in BLOCKED)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if hidden(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def distribution(name):
    if hidden(name):
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

sys.meta_path.insert(0, Refuse())
importlib.util.find_spec = lambda name, package=None: None if hidden(name) else find_spec(name, package)
importlib.metadata.Distribution.from_name = distribution
"""
"""Makes packages of BLOCKED look as if they had never been installed, in the first moment of a Python."""


@pytest.fixture
def bare_python(tmp_path):
    """An environment in which the packages of BLOCKED cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(f"BLOCKED = {BLOCKED!r}\n" + HIDE)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def test_measuring_needs_no_command_line_library(bare_python, tmp_path):
    output = str(tmp_path / "out")
    command = [sys.executable, "launch/bench.py", "--suite", "loader", "--dry-run", "--output", output]
    done = subprocess.run(command, cwd=ROOT, env=bare_python, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not available, nvidia is not installed" in done.stdout


@pytest.mark.parametrize("program", ["train", "plan", "evaluate"])
def test_a_command_line_says_what_it_needs(program, bare_python):
    command = [sys.executable, f"launch/{program}.py"]
    done = subprocess.run(command, cwd=ROOT, env=bare_python, capture_output=True, text=True)
    assert done.returncode == 2 and "the command line needs tyro: pip install tyro" in done.stderr


def test_gpu_tests_are_found_from_a_bare_source_tree(bare_python):
    """One module that cannot be imported would keep pytest from running any of them."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=bare_python, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "test_sam.py::test_moving_does_not_wait_for_a_gpu" in done.stdout


@pytest.mark.slow
def test_the_whole_report_runs_dry_from_a_bare_source_tree(bare_python, tmp_path):
    """Every line of every suite at tiny sizes on the CPU, without the packages that a GPU machine may lack."""
    output = tmp_path / "out"
    command = [sys.executable, "launch/bench.py", "--report", "--dry-run", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=bare_python, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    (place,) = output.iterdir()
    statuses = {}
    for path in set(place.glob("*.json")) - {place / "contact.json"}:
        document = json.loads(path.read_text())
        assert not document["not_reached"], path.stem
        statuses[path.stem] = {row["status"] for row in document["rows"].values()}
    assert {step.suite for step in (*STEPS, *AFTER)} - {""} == set(statuses)
    assert not any("error" in one for one in statuses.values()), statuses
    assert "measured" in statuses["archs"] & statuses["machine"] & statuses["trainer"] & statuses["accuracy"]
    assert statuses["loader"] == statuses["startup"] == statuses["graphs"] == {"not available"}
    assert statuses["training"] == {"measured"}
    steps = json.loads((place / "contact.json").read_text())["steps"]
    assert all(row["status"] == "passed" for row in steps.values()), steps
    assert "Networks beside their peers" in (place / "report.html").read_text()
    assert done.stdout.rstrip().endswith("report.html") and "HCR / library compiled" in done.stdout
