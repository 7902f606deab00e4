"""Ranks without a launcher, as srun or a Kubernetes job starts them: each with an exit code and output of its own."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.launch.conftest import SCRIPT, environment
from tests.waiting import PATIENCE


def free_port() -> int:
    """A TCP port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """So many processes of one run; `different` has flags, variables by their name, or a root, of single ranks."""

    def __init__(self, root: Path, folder: Path, flags: list, ranks: int = 2, different: dict | None = None, **extra):
        self.logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
        self.processes = []
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        for rank in range(ranks):
            more = (different or {}).get(rank, {})
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
            known = environment(
                **({"ACCELERATE_USE_CPU": "true"} | meeting | own | extra | more.get("environment", {}))
            )
            command = [sys.executable, SCRIPT, *map(str, flags), *map(str, more.get("flags", []))]
            with self.logs[rank].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=more.get("root", root),
                        env={name: value for name, value in known.items() if value},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def codes(self, seconds: float = PATIENCE) -> list[int]:
        """How each ended; those that do not are killed, and the test fails."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    @property
    def said(self) -> list[str]:
        """What each printed."""
        return [log.read_text(errors="replace") for log in self.logs]
