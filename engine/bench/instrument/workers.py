"""Processes that do one thing each and tell it in their last line, several of them at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from engine.recovery.interrupt import end_with_parent
from engine.runs.provenance import ROOT


class Worker:
    """A module of this project run with one JSON argument; what it prints goes into a file.

    Not into a pipe: nobody reads while it runs, and a compiler's warnings would fill that and stop it for ever.
    """

    def __init__(self, module: str, given: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=self._said,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent(),
        )

    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self._process.poll() is not None

    def result(self) -> dict[str, Any]:
        """The JSON of its last line where it ended well, else {"error": its last words}. Waits for its end."""
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        self._said.close()
        if code == 0 and lines:
            return json.loads(lines[-1])
        return {"error": (lines or [f"ended with {code}"])[-1][:300]}

    def end(self) -> None:
        """End it now; what it said is let go."""
        self._process.kill()
        self._process.wait()
        self._said.close()
