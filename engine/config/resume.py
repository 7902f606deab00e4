"""Which run `--resume` means."""

from __future__ import annotations

from pathlib import Path

from engine.config.checks import ConfigError, require

WHICHEVER = ("auto", "newest")
"""What `--resume` says in place of a folder: auto begins a run where there is none, newest does not."""


def has_run(output: str | None = None, runs: Path = Path("runs")) -> bool:
    """Whether there is a run to go on with: in --output, else any in runs/."""
    return (Path(output) / "config.yaml").is_file() if output is not None else any(runs.glob("*/config.yaml"))


def find_run(resume: str, output: str | None = None, runs: Path = Path("runs")) -> Path:
    """The run folder that `--resume` means: a run folder, a checkpoint in one, or --output's, else the newest.


    Raises ConfigError where there is no run to go on with.
    """
    if resume in WHICHEVER and output is not None:
        resume = output
    if resume in WHICHEVER:
        found = sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
        require(bool(found), f"--resume: no run in {runs.resolve()}; name its folder: --resume FOLDER")
        return found[-1].parent
    path = Path(resume)
    for folder in (path, *path.parents):
        if (folder / "config.yaml").is_file():
            return folder
    known = ", ".join(sorted(str(run.parent) for run in runs.glob("*/config.yaml"))) or "none"
    raise ConfigError(f"--resume {resume}: no config.yaml there or above it; runs in {runs}: {known}")
