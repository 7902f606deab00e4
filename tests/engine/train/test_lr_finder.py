"""A sweep over a trainer's own steps: nothing of it stays, and every optimizer has one."""

import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from engine.config import OptimConfig
from engine.config.optimizers import OPTIMIZERS
from engine.train.lr_curve import rates_between
from engine.train.lr_finder import sweep

RATES = rates_between(1e-5, 100.0, 40)


def state(trainer) -> list[bytes]:
    """Every tensor that a step could change, as bytes."""
    tensors = list(trainer.model.state_dict().values())
    for each in trainer.optimizer.state_dict()["state"].values():
        tensors += [value for value in each.values() if torch.is_tensor(value)]
    return [tensor.detach().clone().numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_swept_and_put_back(make_trainer, optimizer):
    trainer = make_trainer(optim=OptimConfig(batch_size=16, lr=0.01, optimizer=optimizer))
    trainer.rescue.allocate_state()
    before = state(trainer)
    found = sweep(trainer, RATES)
    assert state(trainer) == before
    assert vars(trainer.progress) == vars(make_trainer("other").progress)
    assert 5 <= len(found.losses) <= len(RATES)
    assert min(loss for loss in found.losses if math.isfinite(loss)) < found.losses[0]


def test_a_run_after_a_sweep_is_the_run_without_one(make_trainer):
    plain, swept = make_trainer("plain"), make_trainer("swept")
    sweep(swept, RATES)
    for trainer in (plain, swept):
        torch.manual_seed(5)
        trainer.fit()
    assert state(plain) == state(swept)


def test_it_takes_the_rates_and_no_schedule(make_trainer):
    trainer = make_trainer(optim=OptimConfig(batch_size=16, lr=0.01, schedule="cosine", warmup_epochs=1))
    taken, usual = [], trainer.rescue.take

    def take(batch):
        usual(batch)
        taken.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.rescue.take = take
    found = sweep(trainer, RATES)
    assert taken == list(RATES[: len(found.losses)])


def test_a_network_that_diverges_at_once_ends_the_sweep(make_trainer):
    trainer = make_trainer(optim=OptimConfig(batch_size=16, lr=0.01, optimizer="sgd"))
    found = sweep(trainer, rates_between(1e20, 1e30, 40))
    assert len(found.losses) < 10 and found.diverged and found.suggestion is None


@pytest.fixture
def find(photos, tmp_path, reset_accelerator, capsys):
    """Runs `--find-lr` with flags in this process; returns (exit code, what was printed)."""
    from engine.config import parse
    from engine.train.lr_finder import find_lr
    from engine.train.lr_range import Range

    def run(*flags) -> tuple[int, str]:
        reset_accelerator()
        small = ["--arch", "convnet_bn", "--image-size", "32", "--batch-size", "4", "--precision", "fp32"]
        config = parse([*small, "--data.workers", "1", "--data.root", str(photos), *map(str, flags)])
        code = find_lr(config, Range(1e-4, 10.0, 20))
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out + said.err

    return run


def test_the_command_leaves_a_curve_and_no_run(find, tmp_path):
    code, said = find("--output", tmp_path / "found")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"find-lr.png", "find-lr.json"}
    figures = json.loads((tmp_path / "found" / "find-lr.json").read_text())
    assert len(figures["losses"]) == 3 and len(figures["rates"]) == 20
    suggested = figures["suggested_lr"]
    assert code == (1 if suggested is None else 0)
    assert ("no suggestion" if suggested is None else f"suggested --lr {suggested:g}") in said


def test_a_runs_folder_and_a_run_to_resume_are_refused(find, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    code, said = find("--output", folder)
    assert code == 2 and "holds another run" in said
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_deepspeed_is_refused_before_anything_is_built(find, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    code, said = find()
    assert code == 2 and "DeepSpeed" in said


def test_an_output_that_cannot_be_written_is_refused_before_a_step(find, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.train.lr_finder.train", lambda *_, **__: pytest.fail("it began"))
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        code, said = find("--output", output)
        assert code == 2 and f"--output {output}: cannot be made a folder" in said
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    code, said = find()
    assert code == 2 and "temporary folder" in said


def test_a_full_disk_is_one_sentence(find, tmp_path, monkeypatch):
    real = Path.write_bytes

    def write(self, data):
        if "find-lr" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    code, said = find("--output", tmp_path / "found")
    assert code == 1 and "find-lr.png cannot be written: the disk is full" in said
    assert not list((tmp_path / "found").iterdir())


@pytest.mark.parametrize("how", ["gone", "ruined"])
def test_images_that_cannot_be_read_end_it(find, photos, tmp_path, how):
    """F4, where no epoch ends: batches without an image were asked for without end."""
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    if how == "ruined":
        for path in (data / "train").rglob("*.jpg"):
            path.write_bytes(b"no image")
        code, said = find("--data.root", data)
        assert code == 2 and "no readable image in train/" in said
        return
    from engine.data.graph.dali import DaliLoader

    with pytest.MonkeyPatch.context() as patch:
        real, count = DaliLoader._batch, []

        def batch(self, position):
            count.append(position)
            if len(count) == 2:
                shutil.rmtree(data / "train")
            return real(self, position)

        patch.setattr(DaliLoader, "_batch", batch)
        code, said = find("--data.root", data)
    assert code == 2 and "no image of a whole batch could be read" in said


def test_what_a_killed_one_left_is_swept(find, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, alive = tmp_path / "hcr-find-lr-4194305-abc", tmp_path / f"hcr-find-lr-{os.getpid()}-abc"
    for folder in (killed, alive):
        (folder / "run").mkdir(parents=True)
    find("--output", tmp_path / "found")
    assert {path.name for path in tmp_path.iterdir()} == {"found", "photos", alive.name}
