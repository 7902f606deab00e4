"""The folder that a run leaves behind: written atomically, never another run's."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.config import ConfigError, RunConfig, require, to_yaml
from engine.runs.records import RecordWriter


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path`; on success it is flushed to disk and takes `path`'s name in one step.

    Its mode is the umask's, also where a library (safetensors) puts a file of its own in its place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """One run's files: config.yaml, plan.json, metrics.jsonl, monitor.jsonl, checkpoints/, model.safetensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.monitor = path / "monitor.jsonl"
        self.weights = path / "model.safetensors"
        self._rows: RecordWriter | None = None

    @classmethod
    def create(cls, config: RunConfig, arch: str, data: str) -> RunFolder:
        """A new folder, or with `config.resume` the one that is there.

        Raises ConfigError where `--output` names another run's folder or something that is not a folder.
        """
        output = config.log.output
        if output is None:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            output = Path("runs") / f"{arch}-{data}-{stamp}"
            while output.exists():
                stamp += "x"
                output = Path("runs") / f"{arch}-{data}-{stamp}"
        folder = cls(output)
        if config.resume is None:
            holds_run = (output / "config.yaml").exists() or (output / "metrics.jsonl").exists()
            require(
                not holds_run,
                f"--output {output} holds another run; go on with it by --resume {output}, or give a new --output",
            )
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {output}: cannot be made a folder: {error.strerror}") from None
        if config.resume is None:
            folder.write_text("config.yaml", to_yaml(config))
        return folder

    def write_text(self, name: str, text: str) -> None:
        """Write a small file in one step."""
        with atomic_file(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file in one step."""
        with atomic_file(self.path / name) as temporary:
            temporary.write_bytes(content)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON in one step."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def append(self, kind: str, **row: Any) -> None:
        """Add a row to metrics.jsonl. The first rank only: one writer a file."""
        if self._rows is None:
            self._rows = RecordWriter(self.metrics)
        self._rows.write({"kind": kind, **row, "time": round(time.time(), 3)})
