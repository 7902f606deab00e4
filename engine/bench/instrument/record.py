"""Where measurements lie: profiles/<machine>/<suite>.json, and everything that one needs to take them again."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from engine.runs.door import atomic_file
from engine.runs.output import obstacle
from engine.runs.provenance import ROOT, command, commit, today, versions
from engine.step.plan import use_cuda

PROFILES = ROOT / "profiles"
SCHEMA = 2
"""1: one set of figures a file (`record`). 2: rows, each with its own commit and date (`Store`)."""


class Unwritable(Exception):
    """Nothing can be written where the results should go; the message says where and why."""


def machine() -> dict[str, Any]:
    """What measures: a short key for the folder name, and the facts behind it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {"cores": cores, "python": platform.python_version()}
    if use_cuda():
        name = torch.cuda.get_device_name()
        return facts | {"key": name.lower().removeprefix("nvidia ").replace(" ", "-"), "gpu": name}
    capability = torch.backends.cpu.get_cpu_capability().lower()
    matrix = "-amx" if torch.cpu._is_amx_tile_supported() else ""
    return facts | {"key": f"cpu{cores}-{capability}{matrix}", "cpu": f"{platform.machine()} {capability}{matrix}"}


def record(suite: str, figures: dict[str, Any], output: Path | None = None) -> Path:
    """Write one set of figures that is measured as a whole: profiles/<machine>/<suite>.json; returns its path."""
    here = machine()
    path = (output or PROFILES) / here["key"] / f"{suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"schema": 1, "suite": suite, "date": today(), "commit": commit(), "command": command()}
    with atomic_file(path) as temporary:
        written = about | {"machine": here, "versions": versions(), "figures": figures}
        temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return path


class Store:
    """One suite's rows on this machine, in a file that is whole after every row.

    A file of schema 1 is taken over as one row named "schema 1"; one of a schema that is newer than this program is
    moved aside. `notes` says so. Raises Unwritable where the folder cannot be written.
    """

    def __init__(self, suite: str, output: Path | None = None) -> None:
        here = machine()
        self.suite = suite
        self.path = (output or PROFILES) / here["key"] / f"{suite}.json"
        self.notes: list[str] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            probe = self.path.with_name(f".{suite}.{os.getpid()}.probe")
            probe.touch()
            probe.unlink()
        except OSError as error:
            why = obstacle(self.path.parent) or error.strerror
            raise Unwritable(f"{self.path.parent} cannot be written ({why}); give another --output") from None
        self.document: dict[str, Any] = {"schema": SCHEMA, "suite": suite, "machine": here, "rows": {}}
        self._read()
        self.document |= {"machine": here, "versions": versions()}

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows by key, as they stand in the file."""
        return self.document["rows"]

    def has(self, key: str, settings: dict[str, Any], failed: bool = False) -> bool:
        """Whether the row was measured already: here, at this commit, with these settings and this torch.

        failed  or failed so
        """
        row, ended = self.rows.get(key), ("measured", "error") if failed else ("measured",)
        return row is not None and row["status"] in ended and row["identity"] == self.identity(settings)

    def begin(self, key: str, settings: dict[str, Any]) -> None:
        """Write which row is being measured: whoever finds that in the file knows where the process ended."""
        self.document["running"] = {"key": key, "identity": self.identity(settings)}
        self.write()

    def identity(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What makes a measurement the same one."""
        return {"commit": commit(), "torch": torch.__version__, "settings": json.loads(json.dumps(settings))}

    def put(self, key: str, settings: dict[str, Any], status: str, seconds: float, content: dict[str, Any]) -> None:
        """Write a row: status "measured" with its figures, "error" or "not available" with the reason.

        What was measured once is not replaced by "not available".
        """
        self.document.pop("running", None)
        if status == "not available" and self.rows.get(key, {}).get("status") == "measured":
            return
        about = {"status": status, "date": today(), "command": command(), "seconds": round(seconds, 1)}
        self.rows[key] = about | {"identity": self.identity(settings)} | content
        self.write()

    def give_up(self) -> None:
        """Write that the row that was begun is not being measured, and nothing of it."""
        self.document.pop("running", None)
        self.write()

    def write(self) -> None:
        """Write the file in one step."""
        write_document(self.path, self.document)

    def _read(self) -> None:
        if not self.path.is_file():
            return
        document, note = load(self.path)
        if document is None:
            aside = self.path.with_suffix(f".unread-{today()}.json")
            self.path.replace(aside)
            note = f"{note}; moved to {aside.name}, and this suite begins anew"
        else:
            self.document |= document
        if note:
            self.notes.append(note)


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write `document` as JSON in one step."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def give_up_running(path: Path, why: str) -> tuple[bool, bool]:
    """Of a suite's file whose process has ended: (it had lost the GPU, it ended in the middle of a row).

    That row is given the error `why`, so that it is not begun again (`Store.has` with `failed`).
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False, False
    lost, running = document.pop("lost", None), document.pop("running", None)
    if running is not None:
        about = {"status": "error", "date": today(), "seconds": None, "command": command()}
        document["rows"][running["key"]] = about | {"identity": running["identity"], "error": why}
    if lost is not None or running is not None:
        write_document(path, document)
    return lost is not None, running is not None


def load(path: Path) -> tuple[dict[str, Any] | None, str]:
    """(a result file as schema 2, or None where it cannot be one, and a sentence where that needs one)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document.get("schema", 1)
    except (ValueError, AttributeError, OSError) as error:
        return None, f"{path} is no result file ({type(error).__name__})"
    if schema == SCHEMA and isinstance(document.get("rows"), dict):
        return document, ""
    if schema == 1 and "figures" in document:
        return upgrade(document), f"{path} is of schema 1: kept as one row that is measured again when asked for"
    return None, f"{path} is of schema {schema}, this program knows {SCHEMA}"


def upgrade(old: dict[str, Any]) -> dict[str, Any]:
    """A document of schema 1 in schema 2: its figures as one row."""
    identity = {"commit": old.get("commit"), "torch": old.get("versions", {}).get("torch"), "settings": {}}
    row = {
        "status": "measured",
        "date": old.get("date"),
        "command": old.get("command"),
        "seconds": None,
        "identity": identity,
        "figures": old["figures"],
    }
    kept = {key: old[key] for key in ("suite", "machine", "versions") if key in old}
    return kept | {"schema": SCHEMA, "rows": {"schema 1": row}}
