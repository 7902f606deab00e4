"""The suites at tiny sizes, through the same lines as on a GPU, and what the command line refuses."""

import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from engine.bench.instrument import bare_loop
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.rows import Row, run_rows
from engine.bench.instrument.sides import Side, build_network
from engine.bench.suites import arch_rows, trainer_tax, zoo_rows
from engine.bench.suites import run as suites
from engine.bench.suites.run import SUITES, UnknownSuite, choose, rows_of, run_suites, table_of
from engine.bench.suites.run_record import run_figures
from engine.runs.provenance import ROOT
from engine.runs.records import RecordWriter


@pytest.fixture
def dry(tmp_path):
    """Options of a dry run into a folder of this test."""
    return Options(archs=("resnet18",), dry_run=True, output=tmp_path, precision="fp32", image_size=32)


def quietly(text: str) -> None:
    """Says nothing."""


def test_suites_by_name():
    assert choose("zoo") == ["zoo"] and choose("all") == list(SUITES)
    with pytest.raises(UnknownSuite, match="did you mean trainer"):
        choose("trianer")


def test_a_file_of_that_name_is_a_suite():
    files = {path.stem for path in Path(suites.__file__).parent.glob("*_suite.py")}
    assert files and {name.rpartition(".")[2] for name in SUITES.values()} >= files


def test_a_suite_that_is_not_there_yet_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "later", "engine.bench.later_rows")
    outcome = run_suites(["later"], Options(output=tmp_path), quietly)["later"]
    assert outcome.not_available == {"later": "engine.bench.later_rows is not there"}


def test_zoo_compares_the_same_network_of_two_makers(dry):
    said: list[str] = []
    outcome = run_suites(["zoo"], dry, said.append)["zoo"]
    assert outcome.measured == ["resnet18"], outcome
    (path,) = dry.output.glob("*/zoo.json")
    figures = json.loads(path.read_text())["rows"]["resnet18"]["figures"]
    assert figures["saved_ratio"] <= 1.0 and figures["holds"]["bytes"]
    assert figures["sides"]["ours"]["channels_last"] and figures["sides"]["theirs"]["channels_last"]
    assert figures["sides"]["theirs"]["network"] == "torchvision:resnet18"
    assert len(figures["speed"]["rates"]["theirs"]) == 2 and "resnet18" in said[-2]


def test_zoo_takes_the_smallest_size_at_which_both_train(monkeypatch):
    ours, theirs = (Side(name, "fp32", True) for name in ("hcr:inceptionv3", "torchvision:inception_v3"))
    monkeypatch.setattr(zoo_rows, "SIZES", (64, 75, 299))
    assert zoo_rows.smallest_size(ours, theirs) == 299  # torchvision's auxiliary head has a 5x5 convolution at its end
    ours, theirs = (Side(name, "fp32", True) for name in ("hcr:resnet18", "torchvision:resnet18"))
    assert zoo_rows.smallest_size(ours, theirs) == 64


def test_archs_states_every_side_and_its_floor(dry):
    rows = rows_of("archs", dry)
    settings = next(row.settings for row in rows if row.key == "resnet18 train fp32 2@32 compile")
    compiled = arch_rows.sides(settings)["library compiled"]
    assert compiled.channels_last and compiled.compile and compiled.network == "torchvision:resnet18"
    figures = arch_rows.measure(settings | {"compile": False}, dry, float("inf"))
    peers = [name for name in arch_rows.CONTENDERS[1:] if name != "library compiled"]
    assert set(figures["contenders"]) == {"HCR", *peers} == set(figures["sides"])
    assert set(figures["ratio"]) == {f"HCR / {name}" for name in peers}
    tutorial = figures["sides"]["tutorial loop"]
    assert (tutorial["precision"], tutorial["channels_last"], tutorial["compile"]) == ("fp32", False, "")
    ours = figures["contenders"]["HCR"]
    assert ours["share_of_floor"] == pytest.approx(figures["floor"]["floor_seconds"] / ours["step_seconds"], abs=1e-4)
    assert figures["notes"] == ["energy is not measured without a GPU"]
    counted = figures["counted_per_image"]
    assert counted["flops"] > 1e7 and counted["saved_bytes"] > 1e5 and counted["parameters"] > 1e7


def test_archs_begins_with_the_networks_that_did_not_fit():
    rows = [row for row in rows_of("archs", Options()) if row.key != "compile ahead"]
    training = [row.settings["arch"] for row in rows if row.settings["mode"] == "train"]
    assert training[:3] == ["resnext50", "inceptionv3", "darknet53"]
    first_inference = next(place for place, row in enumerate(rows) if row.settings["mode"] == "inference")
    assert {row.settings["arch"] for row in rows[:first_inference]} == set(training)


def test_ours_runs_through_the_fused_operators_where_asked(dry):
    (train, *_) = [
        row for row in rows_of("archs", replace(dry, fused="on", archs=("mobilenetv1",))) if " train " in row.key
    ]
    assert train.key.endswith("fused on") and train.settings["fused"] == "on"
    sides = arch_rows.sides(train.settings)
    assert sides["HCR"].fused == "on" and sides["library eager"].fused == "off"
    model = build_network(sides["HCR"], 32)
    assert {module.fused for module in model.modules() if hasattr(module, "fused")} == {"on"}


def test_kernels_give_their_own_rows(monkeypatch):
    rows = [Row("step a", {}, lambda deadline: {}, 1.0)]
    made = SimpleNamespace(rows=lambda options: rows)
    monkeypatch.setitem(sys.modules, "engine.bench.suites.kernel_rates", made)
    assert rows_of("kernels", Options()) == rows
    monkeypatch.setitem(sys.modules, "engine.bench.suites.kernel_rates", SimpleNamespace())
    (missing,) = rows_of("kernels", Options())
    with pytest.raises(NotAvailable, match="has no rows"):
        missing.measure(float("inf"))


def test_auxiliary_heads_are_left_out_on_both_sides_where_the_library_cannot_have_them(dry):
    (train, *_) = [row for row in rows_of("archs", replace(dry, archs=("inceptionv3",))) if " train " in row.key]
    small = arch_rows.sides(train.settings | {"image_size": 224})
    assert not any(side.auxiliary for side in small.values())
    for side in (small["HCR"], small["library eager"]):
        with torch.device("meta"):
            output = build_network(side, 224)(torch.empty(2, 3, 224, 224))
        assert isinstance(output, torch.Tensor)
    assert all(side.auxiliary for side in arch_rows.sides(train.settings | {"image_size": 299}).values())


def test_a_library_that_is_not_installed_leaves_the_tutorial_out(dry, monkeypatch):
    """A network without any library's twin stands in for its own peer; one whose library is missing is named."""
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    settings = next(row.settings for row in rows_of("archs", dry) if "train" in row.key and "compile" in row.key)
    figures = arch_rows.measure(settings | {"compile": False}, dry, float("inf"))
    assert set(figures["contenders"]) == {"HCR"} and "torchvision is not installed" in figures["notes"][1]


def test_machine_measures_what_there_is(dry):
    outcome = run_suites(["machine"], dry, quietly)["machine"]
    assert {"facts", "matmul fp32", "copy"} <= set(outcome.measured) and not outcome.failed
    assert "host to device" in outcome.not_available
    (path,) = dry.output.glob("*/machine.json")
    from engine.bench.instrument.floor import rates_here

    rows = json.loads(path.read_text())["rows"]
    assert rates_here(dry.output).flops_per_second["fp32"] == rows["matmul fp32"]["figures"]["flops_per_second"]


def test_trainer_and_bare_loop_run(reset_accelerator, dry, monkeypatch):
    """By a clock that goes on by a second a look, two to an epoch: both count its 2 x 2 images."""
    looks = itertools.count()
    for module in (trainer_tax, bare_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    figures = rows_of("trainer", dry)[-1].measure(float("inf"))
    (ratio,) = figures["ratio"].values()
    assert figures["rates"] == {"trainer": [4.0, 4.0], "bare loop": [4.0, 4.0]} and ratio["median"] == 1


@pytest.mark.parametrize("augmented", [False, True])
def test_both_loaders_deliver_every_photo(tmp_path, augmented):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from engine.bench.suites.loader_rate import AUGMENTED, loader_rate, photos

    for number in range(6):
        Image.new("RGB", (40 + number, 30), (number, 90, 10)).save(tmp_path / f"{number}.jpg")
    assert len(photos(tmp_path).train) == 6
    how = {"split": "train", "augment": AUGMENTED} if augmented else {"split": "val"}
    result = loader_rate(tmp_path, **how, image_size=16, batch_size=4, rounds=1, workers=1, epochs=1)
    assert set(result.rates) == {"DALI", "torchvision DataLoader"}
    assert all(rate > 0 for rates in result.rates.values() for rate in rates)


def test_photos_of_an_empty_folder(tmp_path):
    from engine.bench.suites.loader_rate import photos

    with pytest.raises(ValueError, match="no images below"):
        photos(tmp_path)


def test_images_as_folders_or_as_an_archive(tmp_path):
    import tarfile

    from engine.bench.instrument.peers import NotAvailable
    from engine.bench.suites.accuracy_rows import drawn_classes, images

    (tmp_path / "cifar").mkdir()
    for ours, theirs in (("train", "train"), ("val", "test")):
        (tmp_path / "cifar" / theirs).symlink_to(drawn_classes() / ours)
    linked = images(tmp_path / "cifar")
    assert len(list((linked / "val" / "class1").glob("*.jpg"))) == 2
    with tarfile.open(tmp_path / "cifar.tar", "w", dereference=True) as archive:
        archive.add(tmp_path / "cifar", "cifar")
    assert len(list((images(tmp_path / "cifar.tar") / "train" / "class0").glob("*.jpg"))) == 8
    with pytest.raises(NotAvailable, match="--data FOLDER"):
        images(tmp_path / "nowhere")
    with pytest.raises(NotAvailable, match="no train/"):
        images(tmp_path)


def test_run_figures_come_from_the_runs_rows(tmp_path):
    with RecordWriter(tmp_path / "metrics.jsonl") as rows:
        start = {"event": "start", "command": "launch/train.py", "device": "CPU", "threads": 2, "ranks": 1}
        rows.write({"kind": "event", **start, "startup_seconds": 4.0})
        for accuracy in (0.5, 0.9, 0.8):
            epoch = {"train_images": 8, "val_images": 4, "images_per_second": 10.0, "val_accuracy": accuracy}
            rows.write({"kind": "epoch", **epoch})
    with pytest.raises(ValueError, match="not a finished run"):
        run_figures(tmp_path)
    with RecordWriter(tmp_path / "metrics.jsonl") as rows:
        rows.write({"kind": "event", "event": "finished", "seconds": 12.5, "unreadable_images": 0})
    figures = run_figures(tmp_path)
    assert figures["best_val_accuracy"] == 0.9 and figures["epochs"] == 3 and figures["seconds"] == 12.5
    assert "test_accuracy" not in figures
    with RecordWriter(tmp_path / "metrics.jsonl") as rows:
        rows.write({"kind": "test", "test_accuracy": 0.85})
    assert run_figures(tmp_path)["test_accuracy"] == 0.85


def test_tables_show_what_became_of_every_row():
    rows = {
        "a": {"status": "measured", "figures": {"ratio": {"x / y": {"median": 1.5, "low": 1.4, "high": 1.6}}}},
        "b": {"status": "error", "error": "RuntimeError: no"},
        "c": {"status": "not available", "reason": "DALI is not installed"},
    }
    text = table_of("loader", rows)
    assert "1.500" in text and "1.400-1.600" in text and "RuntimeError: no" in text and "DALI is not" in text
    assert "RuntimeError: no" in table_of("archs", {"b": rows["b"]}) and "error" in table_of("zoo", {"b": rows["b"]})


def test_a_row_whose_row_fails_says_which_side(dry, monkeypatch):
    monkeypatch.setattr(zoo_rows, "contender", lambda side, *rest, **options: _fails)
    (row,) = rows_of("zoo", dry)
    store = suites.Store("zoo", dry.output)
    outcome = run_rows([row], store, float("inf"), say=quietly)
    assert "ours: ValueError: broken" in outcome.failed["resnet18"]


def _fails() -> float:
    raise ValueError("broken")


@pytest.fixture
def bench(monkeypatch, capsys):
    """bench(*arguments): (exit code, output, complaints) of `launch/bench.py`."""
    from launch.bench import main

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a dry run sets both: they are put back
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


def test_the_command_line_refuses_in_a_sentence(tmp_path, bench):
    code, _, told = bench("--suite", "zooo")
    assert code == 2 and "did you mean zoo" in told
    code, _, told = bench("--suite", "zoo", "--arch", "resnet81")
    assert code == 2 and "nearest: resnet18" in told
    code, _, told = bench("--suite", "zoo", "--budget", "soon")
    assert code == 2 and "give a time such as 8m" in told
    (tmp_path / "file").touch()
    code, _, told = bench("--suite", "machine", "--dry-run", "--output", str(tmp_path / "file"))
    assert code == 2 and "cannot be written" in told


def test_a_budget_of_nothing_lists_what_was_not_reached(tmp_path, bench):
    code, output, _ = bench("--suite", "machine", "--dry-run", "--budget", "0", "--output", str(tmp_path))
    assert code == 0 and "not reached within the budget: facts, matmul fp32" in output


def test_a_crashed_row_is_an_exit_code(tmp_path, bench, monkeypatch):
    from engine.bench.suites import machine_rows

    def broken(size: int, device: object) -> float:
        raise RuntimeError("no memory")

    monkeypatch.setattr(machine_rows, "copy_rate", broken)
    code, output, _ = bench("--suite", "machine", "--dry-run", "--output", str(tmp_path))
    assert code == 1 and "copy: RuntimeError: no memory" in output and "host to device" in output


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 2.5, 6.0])
def test_ctrl_c_is_one_line_at_any_moment(tmp_path, seconds):
    """In the imports as in a row: no traceback, exit code 130, and no row that claims to be running."""
    command = [sys.executable, "launch/bench.py", "--suite", "archs", "--arch", "alexnet", "--dry-run"]
    command += ["--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told and told.strip().count("\n") == 0, told
    again = subprocess.run([*command, "--continue"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    (written,) = tmp_path.rglob("archs.json")
    document = json.loads(written.read_text())
    assert document["rows"] and "running" not in document and not document["not_reached"]
