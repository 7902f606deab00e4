"""torchrun starts a run anew (--max-restarts): it goes on with what it wrote, as if --resume had been given."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

from engine.config import RunConfig, from_yaml
from engine.config.resume import WHICHEVER
from engine.runs.owner import read_owner

COUNT, RUN = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"
"""Environment variables of torchrun: how often it has started its processes anew, and its own name."""


def after_restart(config: RunConfig, runs: Path = Path("runs")) -> RunConfig:
    """The description to go on with: the run folder's own where torchrun started this process anew.

    Before the first folder was made, and without torchrun, it is `config`. Raises ConfigError for a folder whose
    description was cut.
    """
    restarts = os.environ.get(COUNT, "0")
    if not restarts.isdigit() or not int(restarts):
        return config
    folder = Path(config.log.output) if config.log.output is not None else _own_folder(runs)
    if config.resume not in (None, *WHICHEVER):
        for above in (Path(str(config.resume)), *Path(str(config.resume)).parents):
            if (above / "config.yaml").is_file():
                folder = above
                break
    if folder is None or not (folder / "config.yaml").is_file() or read_owner(folder) is None:
        return config
    return replace(from_yaml(folder / "config.yaml", whole=True), resume=str(folder))


def _own_folder(runs: Path) -> Path | None:
    """The newest folder that a process of this very launcher owned."""
    me = socket.gethostname(), os.getppid(), os.environ.get(RUN, "")
    for path in sorted(runs.glob("*/.owner"), key=lambda path: path.stat().st_mtime, reverse=True):
        owner = read_owner(path.parent)
        if owner is not None and (owner.host, owner.launcher, owner.run_id) == me:
            return path.parent
    return None
