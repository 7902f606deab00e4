"""Options of the data on a GPU, each once in a whole run."""

import pytest
import torch

pytest.importorskip("tyro", reason="tyro is not installed: there is no command line")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize(
    "flags",
    [
        ("--data.balance", "sampler", "--best", "balanced", "--augment", "light"),
        ("--data.balance", "effective", "--data.on-leak", "warn", "--optim.label-smoothing", "0.1"),
        ("--optim.logit-adjust", "1", "--best", "macro_f1", "--augment.mixup", "0.2"),
    ],
    ids=lambda flags: flags[1],
)
def test_a_run_with(run_here, photos, flags):
    for path in sorted((photos / "train" / "dog").iterdir())[2:]:
        path.unlink()
    done = run_here(*flags, "--data.backend", "torchvision", "--no-compile", "--epochs", "2", "--log.every", "1")
    assert "classes 4:1" in done.out and "loader ceiling" in done.out and "finished 2 epochs" in done.out


def test_a_run_on_decoded_images(run_here):
    done = run_here("--data.cache", "ram", "--data.backend", "torchvision", "--no-compile")
    assert "images decoded in memory" in done.out and "finished 1 epochs" in done.out


@pytest.mark.parametrize(
    "flags", [("--data.channels", "1", "--image-size", "32", "48"), ("--data.bits", "16", "--augment.mixup", "0.2")]
)
def test_a_run_on_images_of_other_kinds(run_here, flags):
    done = run_here(*flags, "--data.backend", "torchvision", "--no-compile")
    assert "finished 1 epochs" in done.out
