"""The leaderboard: rows in the learning repository's order, its figures beside ours, empty where nothing was run."""

import csv
import json
import re
import shutil
import subprocess

import pytest
import yaml

from engine.report.leaderboard import THEIRS, find_runs, leaderboard, network_facts, plan_text
from engine.report.leaderboard_files import as_csv, as_markdown, as_page, read_csv, terminal_table, write_leaderboard
from engine.runs.history import NotARun
from engine.runs.text_table import width


def config(arch: str, data: str = "cifar10", size: int = 64, **optim) -> str:
    groups = {
        "model": {"arch": arch},
        "data": {"name": data, "image_size": size},
        "optim": {"epochs": 3, "batch_size": 128, "lr": 0.1, "optimizer": "sgd", "schedule": "cosine", **optim},
        "recipe": f"{arch}/paper",
        "seed": 7,
    }
    return yaml.safe_dump(groups)


@pytest.fixture
def runs(make_run, metrics, finished, gpu_rows, tmp_path):
    """A folder of three runs: two of ResNet-18 on CIFAR-10, one on the digits."""
    rows = [row | {"train_images": 1000} if row["kind"] == "epoch" else row for row in finished(metrics(3))]
    rows[0] |= {"command": "launch/train.py --recipe 'resnet18/paper' --x a|b"}
    worse = [row | {"val_accuracy": 0.6} if row["kind"] == "epoch" else row for row in rows]
    make_run("first", rows=worse, config=config("resnet18"))
    make_run("second", rows=rows, monitor=gpu_rows(10), config=config("resnet18", size=32))
    make_run("digits", rows=rows, config=config("vgg11", "digits"))
    return tmp_path


@pytest.fixture
def lines(runs):
    return leaderboard(find_runs([runs]))


def test_every_row_of_theirs_is_there_in_order_and_what_was_not_run_is_empty(lines):
    names = list(dict.fromkeys(line.network for line in lines))
    assert names[:4] == ["AlexNet", "VGG-11", "NIN", "ResNet-18"]
    assert set(THEIRS) <= set(names) and {"InceptionV3", "Darknet-53"} <= set(names)
    for line in lines:
        if not line.run:
            assert line.ours is None and line.images_per_second is None and line.command == ""
            assert line.theirs == THEIRS.get(line.network)


def test_the_better_run_comes_first_beside_their_figure(lines):
    resnet = [line for line in lines if line.network == "ResNet-18"]
    assert [line.run for line in resnet] == ["second", "first"]
    assert [line.theirs for line in resnet] == [74.9, 74.9]
    assert resnet[1].ours == pytest.approx(60.0)
    assert (resnet[0].image_size, resnet[0].batch, resnet[0].seed) == (32, 128, 7)
    assert resnet[0].schedule == "sgd 0.1 cosine (resnet18/paper)"
    assert resnet[0].epochs == "3 of 3" and resnet[0].state == "finished"


def test_energy_is_there_where_it_was_measured(lines):
    resnet = [line for line in lines if line.network == "ResNet-18"]
    assert resnet[0].joules_per_image == pytest.approx(170 * 9 / 3000)
    assert resnet[1].joules_per_image is None


def test_a_run_on_other_data_does_not_stand_beside_their_figure(lines):
    empty, run = [line for line in lines if line.network == "VGG-11"]
    assert (empty.theirs, empty.run) == (75.93, "")
    assert (run.theirs, run.data, run.run) == (None, "digits", "digits")


def test_counts_are_of_the_runs_own_size():
    parameters, small = network_facts("resnet18", 10, 32)
    assert parameters == 11_181_642
    assert network_facts("resnet18", 10, 64) == (parameters, pytest.approx(4 * small, rel=0.01))
    assert network_facts("vit_d6", 10, 64)[1] < network_facts("vit_d6", 10, 224)[1]
    assert network_facts("mobilenetv2", 10, 32, 0.5)[0] < network_facts("mobilenetv2", 10, 32)[0]
    assert network_facts("no such network", 10, 32) == (None, None)


def test_sam_and_cyclic_rates_are_rows_of_their_own(make_run, tmp_path):
    make_run("sam", rows=[], config=config("resnet18", sam=0.05))
    make_run("cyclic", rows=[], config=config("alexnet", schedule="triangular"))
    run = {line.run: line for line in leaderboard(find_runs([tmp_path]))}
    assert (run["sam"].network, run["sam"].theirs) == ("ResNet-18, SAM", 76.2)
    assert (run["cyclic"].network, run["cyclic"].theirs) == ("AlexNet, CyclicLR", 79.56)
    assert run["sam"].ours is None and run["sam"].state == "unfinished"


def test_a_plan_in_words():
    assert plan_text({}) == ""
    plan = {"precision": "bf16", "micro_batch_size": 64, "accumulation": 2, "ranks": 1, "recompute": "block"}
    assert plan_text(plan | {"device_name": "X"}) == "bf16, 64 × 2, recompute block on X"


def test_the_terminal_has_80_columns(lines):
    assert max(map(width, terminal_table(lines).splitlines())) <= 80


def test_csv_has_plain_numbers_and_markdown_whole_rows(lines):
    table = list(csv.DictReader(as_csv(lines).splitlines()))
    second = next(row for row in table if row["run"] == "second")
    assert float(second["theirs"]) == 74.9 and int(second["image_size"]) == 32 and second["joules_per_image"]
    assert second["command"].endswith("--x a|b")
    rows = as_markdown(lines).splitlines()
    assert len(rows) == len(lines) + 2
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {19}


def test_runs_whose_folders_are_gone_stay_in_and_a_folder_comes_before_what_was_kept(lines, runs, tmp_path, make_run):
    path = tmp_path / "earlier.csv"
    path.write_text(as_csv(lines))
    assert read_csv(path) == lines and as_csv(read_csv(path)) == path.read_text()
    for name in ("first", "digits"):
        shutil.rmtree(runs / name)
    assert leaderboard(find_runs([runs]), read_csv(path)) == lines
    make_run("first", rows=[], config=config("resnet18"))
    again = leaderboard(find_runs([runs]), read_csv(path))
    assert [line.ours for line in again if line.run == "first"] == [None]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\ufeff", None, "cut"])
def test_a_file_that_is_no_leaderboard_is_named(text, lines, tmp_path):
    path = tmp_path / "other.csv"
    whole = as_csv(lines)
    made = {None: whole.replace("74.9", "much"), "cut": whole[: whole.rindex(",,")]}
    path.write_text(made.get(text, text))
    with pytest.raises(NotARun, match=f"{path}: not the CSV of a leaderboard"):
        read_csv(path)
    with pytest.raises(NotARun, match="cannot be read"):
        read_csv(tmp_path / "none.csv")


def test_the_page_needs_nothing_else_and_escapes(lines):
    page = as_page(lines)
    assert page.count("<tr>") == len(lines) + 1
    assert "--recipe &#39;resnet18/paper&#39;" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)


def test_a_place_without_runs_is_refused(tmp_path):
    with pytest.raises(NotARun, match="neither a run nor a folder of runs"):
        find_runs([tmp_path])


def test_the_command_writes_three_files(runs, launch_report, capsys):
    assert launch_report([str(runs), "--leaderboard"]) == 0
    assert {"leaderboard.html", "leaderboard.md", "leaderboard.csv"} <= {path.name for path in runs.iterdir()}
    assert "ResNet-18" in capsys.readouterr().out


@pytest.fixture
def launch_report():
    from launch.report import main

    return main


@pytest.mark.slow
def test_a_click_sorts_the_page(lines, tmp_path):
    """In a real browser: the column of ours, highest first, empty ones last."""
    if (browser := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("no browser")
    page, *_ = write_leaderboard(lines, tmp_path)
    told = (
        "<script>sort(2); document.title = JSON.stringify([...body.rows].map((r) => r.children[2].innerText))</script>"
    )
    page.write_text(page.read_text().replace("</body>", f"{told}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
    order = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    shown = [float(text) for text in order if text]
    assert len(shown) == 3 and shown == sorted(shown, reverse=True)
    assert set(order[3:]) == {""}
