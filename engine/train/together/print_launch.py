"""`launch/train.py --print-launch slurm --nodes 4 FLAGS`: the launch file of configs/ with these in their places."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from engine.config import ConfigError, parse, require

FLAG = "--print-launch"
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = {
    "slurm": "slurm/train.sbatch",
    "slurm-accelerate": "slurm/accelerate.sbatch",
    "kubernetes": "kubernetes/indexed-job.yaml",
    "pytorchjob": "kubernetes/pytorchjob.yaml",
    "trainjob": "kubernetes/trainjob.yaml",
}
"""By what the flag takes."""
OWN = ("--output", "--resume")
"""Flags that the files give themselves."""


def wanted(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for it."""
    return any(one == FLAG or one.startswith(f"{FLAG}=") for one in arguments)


def launch_text(arguments: Sequence[str]) -> str:
    """The file's text for a command line. Raises ConfigError for what cannot be meant, a run's flags included."""
    rest = [part for one in arguments for part in (one.split("=", 1) if one.startswith(tuple(_OPTIONS)) else [one])]
    taken = dict.fromkeys(_OPTIONS, "")
    for name in _OPTIONS:
        if name in rest:
            where = rest.index(name)
            require(where + 1 < len(rest), f"{name} needs a value")
            taken[name] = rest[where + 1]
            del rest[where : where + 2]
    kind, nodes, gpus = taken[FLAG], taken["--nodes"] or "2", taken["--gpus-per-node"] or "8"
    require(kind in FILES, f"{FLAG} {kind}: there are {', '.join(FILES)}")
    for name, number in (("--nodes", nodes), ("--gpus-per-node", gpus)):
        require(number.isdecimal() and int(number) >= 1, f"{name} must be a number from 1 on, not {number}")
    if given := next((one for one in rest if one.partition("=")[0] in OWN), None):
        raise ConfigError(f"{given}: the launch file has --output and --resume auto of its own; change them there")
    parse(rest)  # a mistake in them is told now, not when the job begins
    text = (CONFIGS / FILES[kind]).read_text(encoding="utf-8")
    return _filled(text, kind, nodes, gpus, rest or ["--arch", "resnet50"])


_OPTIONS = (FLAG, "--nodes", "--gpus-per-node")


def _filled(text: str, kind: str, nodes: str, gpus: str, flags: list[str]) -> str:
    """The file with its two machines, eight GPUs and example flags replaced."""
    quoted = shlex.join(flags)
    if kind.startswith("slurm"):
        text = re.sub(r"(#SBATCH --nodes=)\d+", rf"\g<1>{nodes}", text)
        text = re.sub(r"(#SBATCH --gpus-per-node=)\d+", rf"\g<1>{gpus}", text)
        return re.sub(r"training=\(.*\)", lambda _: f"training=({quoted})", text)
    counts = "completions|parallelism|replicas|minReplicas|maxReplicas|numNodes"
    text = re.sub(rf"((?:{counts}): )\d+", rf"\g<1>{nodes}", text)
    text = re.sub(r"(--nnodes )\d+", rf"\g<1>{nodes}", text)
    text = re.sub(r"(--nproc_per_node |nvidia.com/gpu: \"|nprocPerNode: \"|numProcPerNode: )\d+", rf"\g<1>{gpus}", text)
    listed = ", ".join(f'"{flag}"' for flag in flags)
    text = text.replace("--arch, resnet50, --data.root, /shared/photos", listed)
    return text.replace("--arch resnet50 --data.root /shared/photos", quoted)
