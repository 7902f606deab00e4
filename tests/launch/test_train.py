"""`launch/train.py` as a person meets it: the first line, mistakes, Ctrl-C, a kill, and going on afterwards."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from engine.config import ConfigError, from_yaml
from engine.data.preprocessing import Preprocessing
from engine.use.evaluation import parse, run_evaluation
from tests.waiting import PATIENCE, until

TRAIN = "launch/train.py"


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of two classes, 12 + 4 small pictures each, red against blue."""
    root = tmp_path / "photos"
    for split, count in (("train", 12), ("val", 4)):
        for label, colour in (("blue", (20, 30, 200)), ("red", (200, 30, 20))):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (48, 40), tuple(part + number for part in colour)).save(folder / f"{number:02d}.jpg")
    return root


def flags(*extra) -> list[str]:
    """A short run on pictures of 32 px."""
    return ["--image-size", "32", "--batch-size", "8", "--precision", "fp32", "--log.no-plots", *map(str, extra)]


@pytest.fixture(scope="session")
def start_in_background(root):
    """Start a run and hand back its process, once it stands still behind `step`; `released` lets it go on."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(arguments: list[str], folder: Path, step: int, *before: str) -> subprocess.Popen:
            command = [*(before or (sys.executable,)), "tests/launch/norm_free.py", *arguments, "--output", str(folder)]
            process = subprocess.Popen(
                command,
                cwd=root,
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HELD": f"{step}:{released(folder)}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=hear_signals,
            )
            stack.callback(stop_group, process)
            until(lambda: last_step(folder) >= step, [process], lambda: process.communicate()[0])
            return process

        yield start


def released(folder: Path) -> Path:
    """The file whose being there lets a run in `folder` go on."""
    return folder.with_suffix(".released")


def hear_signals() -> None:
    """Undo what a background shell or nohup did to this test run: there, signals start out ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stop_group(process: subprocess.Popen) -> None:
    """Leave nothing running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def last_step(folder: Path) -> int:
    """The newest step in a run's metrics; 0 before there is one."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line).get("step", 0) for line in lines if line.endswith("}")]
    return max(steps, default=0)


def test_resnext_trains_on_the_digits(launch, tmp_path, rows):
    """The quick start, smaller: the first line says what is trained on and how to name one's own."""
    run = tmp_path / "run"
    done = launch(
        *("--arch", "resnext", "--config", "configs/quickstart.yaml", "--epochs", 1, "--data.limit", 32),
        *("--image-size", 32, "--output", run),
        script=TRAIN,
    )
    first = done.stdout.splitlines()[0]
    assert "digits" in first and "--data.root FOLDER" in first
    assert {path.name for path in run.iterdir()} >= {
        *("config.yaml", "plan.json", "metrics.jsonl", "monitor.jsonl", "checkpoints", "model.safetensors"),
        *("plots", "report.html"),
    }
    assert rows(run, "epoch")[0]["train_images"] == 32
    assert rows(run, "epoch")[0]["val_images"] == 359
    assert {"accuracy.png", "loss.png"} <= {path.name for path in (run / "plots").iterdir()}
    assert not list(run.rglob("*.tmp"))


def test_the_resolved_config_repeats_the_run(launch, alone, tmp_path):
    launch("--config", alone / "config.yaml", "--output", tmp_path / "run")
    ours = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in load_file(alone / "model.safetensors").items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_own_pictures_are_learnt(here, photos, tmp_path, rows):
    run = tmp_path / "run"
    here(*flags("--arch", "resnet18", "--data.root", photos, "--epochs", 3, "--output", run))
    last = rows(run, "epoch")[-1]
    assert last["train_images"] == 24 and last["val_images"] == 8
    assert max(row["val_accuracy"] for row in rows(run, "epoch")) == 1.0


def test_unreadable_pictures_are_named_counted_and_left_out(here, photos, tmp_path, rows):
    broken = photos / "train" / "red" / "00.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    text = photos / "val" / "blue" / "01.jpg"
    text.write_text("not a picture")
    run = tmp_path / "run"
    done = here(*flags("--arch", "convnet_bn", "--data.root", photos, "--epochs", 2, "--output", run))
    assert str(broken) in done.stdout and str(text) in done.stdout
    assert "unreadable images left out: 2" in done.stdout
    assert [(row["train_images"], row["val_images"]) for row in rows(run, "epoch")] == [(23, 7), (23, 7)]
    events = [row["path"] for row in rows(run, "event") if row["event"] == "bad_image"]
    assert sorted(events) == sorted([str(broken), str(text)])
    refused = here(
        *flags("--arch", "convnet_bn", "--data.root", photos, "--data.on-bad-image", "error"),
        *("--output", tmp_path / "refused"),
        code=2,
    )
    assert str(broken) in refused.stderr


def mistakes(photos: Path):
    """(flags, words of the message), each ending with exit code 2."""
    yield ["--arch", "resnxt50"], ["resnext50"]
    yield ["--data.root", photos / "nowhere"], ["nowhere"]
    yield ["--data.root", photos / "train" / "red"], ["no class folders"]
    yield ["--data.name", "mnist", "--data.no-download", "--data.root", photos], ["MNIST", "raw"]
    yield ["--data.root", photos, "--batch-size", "8", "--parallel.micro-batch-size", "9"], ["a rank's share of 8"]
    yield ["--config", "configs/quikstart.yaml"], ["quickstart.yaml"]
    yield ["--resume", photos], ["no config.yaml"]
    yield ["--output", photos / "train" / "red" / "00.jpg"], ["cannot be made a folder"]
    yield ["--precision", "fp16"], ["needs a GPU"]
    yield ["--arch", "inceptionv3", "--image-size", "32"], ["75x75", "32x32"]
    yield ["--data.root", photos, "--batchsize", "8"], ["--batch-size"]


@pytest.mark.parametrize("number", range(11))
def test_mistakes_are_told_plainly(here, photos, number, tmp_path):
    arguments, words = list(mistakes(photos))[number]
    output = [] if "--output" in arguments or "--resume" in arguments else ["--output", tmp_path / "run"]
    done = here(*arguments, *output, code=2)
    said = done.stdout + done.stderr
    assert all(word in said for word in words), said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_empty_class_and_unknown_class_in_val(launch, photos, tmp_path):
    """In processes of their own, as one of the mistakes above has to be."""
    (photos / "val" / "green").mkdir()
    done = launch("--data.root", photos, "--output", tmp_path / "run", script=TRAIN, code=2)
    assert "green" in done.stderr and "Traceback" not in done.stderr
    (photos / "val" / "green").rmdir()
    (photos / "train" / "yellow").mkdir()
    done = launch("--data.root", photos, "--output", tmp_path / "run", script=TRAIN, code=2)
    assert "yellow" in done.stderr


SHORT = ["--arch", "convnet_bn", "--batch-size", "8", "--image-size", "32", "--data.limit", "32", "--lr", "0.01"]
SHORT += ["--epochs", "1", "--precision", "fp32", "--log.no-plots"]


def test_another_runs_folder_is_refused(here, tmp_path):
    run = tmp_path / "run"
    here(*SHORT, "--output", run)
    before = (run / "metrics.jsonl").read_bytes()
    done = here(*SHORT, "--output", run, code=2)
    assert "holds another run" in done.stderr and "--resume" in done.stderr
    assert (run / "metrics.jsonl").read_bytes() == before
    done = here("--resume", run, "--lr", "0.5", code=2)
    assert "optim.lr 0.01 -> 0.5" in done.stderr


def test_a_finished_run_can_be_made_longer(here, tmp_path, rows):
    run = tmp_path / "run"
    here(*SHORT, "--output", run)
    # With less memory than before: what runs out of it says these flags.
    here("--resume", run, "--epochs", 2, "--recompute", "block", "--parallel.micro-batch-size", 2)
    described = from_yaml(run / "config.yaml")  # the next one goes on with the same
    assert (described.optim.epochs, described.memory.recompute) == (2, "block")
    assert described.parallel.micro_batch_size == 2
    assert [row["epoch"] for row in rows(run, "epoch")] == [1, 2]


LONG = ["--arch", "norm_free", "--image-size", "32", "--batch-size", "4", "--precision", "fp32", "--log.no-plots"]
LONG += ["--data.limit", "400", "--epochs", "2", "--log.every", "2", "--log.checkpoint-steps", "20"]


@pytest.fixture(scope="session")
def whole(launch, tmp_path_factory):
    """LONG, never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    launch(*LONG, "--output", folder)
    return load_file(folder / "model.safetensors")


def assert_resumes_to(launch, folder: Path, whole: dict) -> None:
    launch("--resume", folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_stopped_runs_save_and_go_on(launch, start_in_background, whole, tmp_path, number, code):
    """Through DALI and the real entry point, in mid-epoch: the same weights as never stopped, bit for bit."""
    process = start_in_background(LONG, tmp_path / "run", 30)
    process.send_signal(number)
    released(tmp_path / "run").touch()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    assert f"go on with: --resume {tmp_path / 'run'}" in said and "Traceback" not in said
    assert_resumes_to(launch, tmp_path / "run", whole)


def test_killed_runs_go_on_from_the_last_checkpoint(launch, start_in_background, whole, tmp_path):
    process = start_in_background(LONG, tmp_path / "run", 70)
    process.kill()
    process.communicate()
    assert_resumes_to(launch, tmp_path / "run", whole)


def test_accelerate_launch_stops_with_its_run(start_in_background, tmp_path, rows):
    """SIGTERM to `accelerate launch`, which passes nothing on: the run saves and ends all the same."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    process = start_in_background(LONG, tmp_path / "run", 30, *launcher)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) in (143, -signal.SIGTERM)
    released(tmp_path / "run").touch()
    process.communicate(timeout=PATIENCE)
    assert rows(tmp_path / "run", "event")[-1]["event"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_what_a_terminal_sends_reaches_the_launcher_too(start_in_background, tmp_path, rows, number):
    """Ctrl-C, or its end: `accelerate launch` goes at once, of which the run hears as well, and saves all the same."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    process = start_in_background(LONG, tmp_path / "run", 30, *launcher)
    os.killpg(process.pid, number)
    assert process.wait(PATIENCE) in (1, -number)
    released(tmp_path / "run").touch()
    process.communicate(timeout=PATIENCE)
    assert rows(tmp_path / "run", "event")[-1]["event"] == "interrupted"
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_evaluate_reads_what_a_run_left(launch, here, photos, rows, tmp_path):
    run = tmp_path / "run"
    pixels = ["--data.mean", 0.1, 0.2, 0.3, "--data.std", 0.5, 0.6, 0.7]
    pixels += ["--data.eval-crop", 0.8, "--data.interpolation", "bicubic"]
    shape = ["--arch", "resnet18", "--epochs", 1, "--output", run, *pixels]
    here(*flags("--data.root", photos, *shape))
    expected = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 0.8, "bicubic", 32)
    with safe_open(run / "model.safetensors", framework="numpy") as file:
        assert Preprocessing.from_json(file.metadata()["preprocessing"], "w") == expected
    assert Preprocessing.named_by(from_yaml(run / "config.yaml").data) == expected
    checkpoint = next((run / "checkpoints").iterdir())
    results = []
    for number, weights in enumerate((run, run / "model.safetensors", checkpoint)):
        out = tmp_path / f"out{number}"
        arguments = ["--checkpoint", weights, "--data", photos, "--precision", "fp32", "--output", out]
        if number:
            run_evaluation(parse(list(map(str, arguments))))
        else:
            assert f"written to {out}" in launch(*arguments, script="launch/evaluate.py").stdout
        results.append(json.loads((out / "evaluation.json").read_text()))
        assert (out / "confusion.png").stat().st_size > 1000
    assert results[0]["count"] == 8
    tested = rows(run, "epoch")[-1]
    for result in results:  # their own pixels, though the folder's are others
        assert result["loss"] == pytest.approx(tested["val_loss"], rel=1e-5)
    assert results[0]["accuracy"] == results[1]["accuracy"] == results[2]["accuracy"]
    with pytest.raises(ConfigError, match=r"2 classes.*10"):
        run_evaluation(parse(["--checkpoint", str(run), "--data", "digits"]))
