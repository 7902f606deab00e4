"""`launch/plan.py` without its process: what it prints, writes and refuses."""

import contextlib
import io
import json

import numpy as np
import pytest

from engine.config import ConfigError
from engine.config import parse as parse_run
from engine.config.byte_sizes import GIB
from engine.plan.command import run_plan
from engine.plan.matrix import BUDGETS, PRECISIONS, document, network_rows, short
from engine.plan.memory.trace import Category, Timeline
from engine.plan.request import PlanConfig, parse, training_flags
from engine.report.memory_picture import POINTS, condensed, planned_picture

FLAGS = ["--arch", "resnet18", "--image-size", "64"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Exit code, output and folder of one plan that has to recompute."""
    folder = tmp_path_factory.mktemp("plan")
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = run_plan(
            parse([*FLAGS, "--gpu-memory", "1.42GiB", "--explain", "--output", str(folder)]), planned_picture
        )
    return code, text.getvalue(), folder


def test_a_plan_is_printed_with_its_candidates(planned):
    code, text, _ = planned
    assert code == 0
    table = text.partition("\nchosen")[0].splitlines()
    assert sum(line.endswith("chosen") for line in table) == 1
    assert any("nested" in line for line in table) and any("64 × 2 × 1" in line for line in table)
    assert all(words in text for words in ("saved activations", "context", "CUDNN_CONV_WSCAP_DBG", "measured on"))
    assert "with --compile so does this" in text


SHARDED = ["--arch", "alexnet_owt", "--image-size", "64", "--batch-size", "32", "--gpus", "4"]
"""Mostly parameters: sharding them saves more than anything else."""


def test_several_gpus_may_shard_what_does_not_fit_each(tmp_path):
    """DDP where it fits, with a row a ZeRO stage beside it; else the first stage that fits, and how to start it."""
    peaks = {}
    for budget in (4 * GIB, 0):
        budget = budget or (peaks["DDP"] + peaks["ZeRO-1"]) // 2
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            run_plan(parse([*SHARDED, "--gpu-memory", f"{budget}B", "--output", str(tmp_path)]), planned_picture)
        rows = [line.split() for line in text.getvalue().partition("\nchosen")[0].splitlines()[2:]]
        chosen = [row for row in rows if row[-1] == "chosen"]
        assert len(chosen) == 1
        kinds = [row[6] for row in rows]
        plan = json.loads((tmp_path / "plan.json").read_text())
        peaks[chosen[0][6]] = plan["predicted_peak_bytes"]
        if "ZeRO-1" not in peaks:
            assert chosen[0][6] == "DDP" and plan["zero_stage"] == 0
            assert [kinds.count(f"ZeRO-{stage}") for stage in (1, 2, 3)] == [1, 1, 1]
            assert "start it by" not in text.getvalue()
            first = next(row for row in rows if row[6] == "ZeRO-1")
            peaks["ZeRO-1"] = int(float(first[first.index("GiB") - 1]) * GIB)
    assert chosen[0][6] == "ZeRO-1" and plan["zero_stage"] == 1
    assert kinds.count("DDP") == kinds.count("ZeRO-2") == 1
    assert "deepspeed_zero1.yaml --num_processes 4 launch/train.py --arch alexnet_owt" in text.getvalue()


def test_where_no_stage_fits_the_least_of_them_is_named(capsys):
    with pytest.raises(ConfigError, match=r"--gpu-memory 2\.4375GiB would do, or 2\.[23]\d*GiB under ZeRO-1$"):
        run_plan(parse([*SHARDED, "--gpu-memory", "1GiB"]), planned_picture)
    with pytest.raises(ConfigError, match=r"GiB would do$"):  # DeepSpeed cannot do this
        run_plan(parse([*SHARDED, "--gpu-memory", "1GiB", "--sam", "0.1"]), planned_picture)


def test_zero_3_is_planned_uncompiled(tmp_path, capsys):
    assert run_plan(parse([*SHARDED, "--zero-stage", "3", "--output", str(tmp_path)]), planned_picture) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["zero_stage"] == 3 and not plan["compile"]


def test_an_average_of_the_weights_is_planned_for():
    assert parse([*FLAGS, "--ema", "0.999"]).run_config().optim.ema == 0.999


def test_a_plan_is_written_with_its_picture(planned):
    _, text, folder = planned
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["global_batch_size"] == plan["micro_batch_size"] * plan["accumulation"] == 128
    predicted = plan["predicted_peak_bytes"]
    assert predicted == sum(plan["predicted_bytes"].values()) <= int(1.42 * GIB) == plan["budget_bytes"]
    assert f"{predicted / GIB:.2f} GiB" in text
    picture = (folder / "memory.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu-memory", "8"], "8GiB or 8MiB"),
        (["--gpu-memory", "0GiB"], "no memory"),
        (["--gpu-memory", "lots"], "a number and a unit"),
        (["--gpu-memory", "0.5GiB"], r"has no plan in 0\.50 GiB: it needs .* most of it loader; --gpu-memory"),
        (["--arch", "resnet19"], "resnet18"),
        (["--gpus", "200"], "--batch-size 128 is less than an image for each of 200 ranks"),
        (["--gpus", "0"], "--gpus must be a number from 1 on, not 0"),
        (["--gpus", "8..64"], "not 8..64; several numbers are projected with --interconnect"),
        (["--micro-batch-size", "129"], "129 are more than a rank's share of 128"),
        (["--arch", "inceptionv3"], "75"),
        (["--micro-batch-size", "7", "--gpu-memory", "0.6GiB"], r"has no plan in 0\.60 GiB.*, 7 images at a time"),
        (["--offload-optimizer"], "give --zero-stage 2"),
        (["--processes", "-1"], "0 .one a core. or more"),
        (["--matrix", "--recompute", "none", "--explain"], "recompute, explain would have no effect"),
        (["--matrix", "--gpus", "200"], "128 is less than an image for each of 200"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_is_refused(flags, said, capsys, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run_plan(parse([*FLAGS, *flags, "--output", str(tmp_path)]), planned_picture)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["file", "file/below", "run"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_planned(where, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"holds a run|cannot be made a folder"):
        run_plan(parse([*FLAGS, "--output", str(tmp_path / where)]), planned_picture)
    assert not capsys.readouterr().out


def test_the_start_command_has_what_was_planned_for():
    flags = ["--optimizer", "sgd", "--precision", "fp32", "--sync-bn", "--ema", "0.9", "--micro-batch-size", "8"]
    said = training_flags(parse([*FLAGS, *flags])).split()
    config = parse_run(said)
    assert (config.model.arch, config.data.image_size, config.memory.gpu_memory) == ("resnet18", 64, "8GiB")
    assert (config.optim.optimizer, config.precision.precision, config.optim.ema) == ("sgd", "fp32", 0.9)
    assert config.parallel.sync_bn and config.parallel.micro_batch_size == 8
    assert set(training_flags(parse(FLAGS)).split()[::2]) == {"--arch", "--batch-size", "--image-size", "--gpu-memory"}


def test_what_deepspeed_cannot_do_is_refused_before_anything_is_planned(capsys):
    with pytest.raises(ConfigError, match=r"--optim\.ema needs whole parameters"):
        run_plan(parse([*FLAGS, "--ema", "0.9", "--zero-stage", "3"]), planned_picture)
    assert not capsys.readouterr().out


def test_the_budget_that_would_do_does(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        run_plan(parse([*FLAGS, "--batch-size", "8", "--gpu-memory", "0.5GiB"]), planned_picture)
    would = str(refusal.value).partition("--gpu-memory ")[2].split()[0]
    with contextlib.redirect_stdout(io.StringIO()):
        flags = ["--batch-size", "8", "--gpu-memory", would, "--output", str(tmp_path)]
        assert run_plan(parse([*FLAGS, *flags]), planned_picture) == 0


def test_matrix_rows_cover_every_cell():
    rows = network_rows(PlanConfig(image_size=32, batch_size=32), "resnet18")
    assert [(row["precision"], row["gpu_memory_gib"]) for row in rows] == [(p, b) for p in PRECISIONS for b in BUDGETS]
    assert all(row["fits"] and row["exact"] and row["recompute"] == "none" for row in rows)
    text = document(rows, PlanConfig(), "python launch/plan.py --matrix")
    assert text.count("| `resnet18` | ✓ | ✓ | ✓ | ✓ | ✓ |") == 3


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ({"recompute": "first 3 blocks", "accumulation": 1, "exact": True}, "R"),
        ({"recompute": "9 nested segments", "accumulation": 4, "exact": False}, "*N ÷4*"),
        ({"recompute": "none + offload", "accumulation": 1, "exact": True}, "H"),
    ],
)
def test_cells(cell, text):
    assert short(cell | {"fits": True}) == text
    assert short({"fits": False, "least_gib": 8.25}) == "– (8.25)"
    assert short({"error": "aten.odd"}) == "?"


def test_a_long_step_is_drawn_by_its_highest_moments():
    live = np.zeros((len(Category), 10 * POINTS))
    live[Category.SAVED, 4321] = 1.0
    columns = condensed(Timeline(live, ((0, "forward"),)))
    assert 4321 in columns and len(columns) <= POINTS
