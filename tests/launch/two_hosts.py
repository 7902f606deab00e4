"""Two hosts that are not there: network namespaces with an address, a name and a cable each, on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.launch.conftest import environment
from tests.launch.slow_cable import SlowCable

NAMES = ("hcr-a", "hcr-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLES = ("hcr0", "hcr1")


def system(*command: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=check, capture_output=True, text=True)


def pids(name: str) -> list[int]:
    """Processes on a host."""
    place, found = Path("/run/netns", name), []
    network = place.stat().st_ino if place.exists() else 0
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (one / "ns" / "net").stat().st_ino == network:
                found.append(int(one.name))
    return found


class Hosts:
    """Made, used, taken down again."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        self.names = names
        self.processes: list[subprocess.Popen] = []
        for name in names:
            system("ip", "netns", "add", name)
            folder = Path("/etc/netns") / name  # ip netns exec puts it over /etc
            folder.mkdir(parents=True, exist_ok=True)
            known = "".join(f"{address} {each}\n" for address, each in zip(ADDRESSES, names, strict=True))
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        self.relayed: SlowCable | None = None
        """The cable where netem is asked for and the kernel has none."""
        ends = [["name", cable, "netns", name] for name, cable in zip(names, CABLES, strict=True)]
        system("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        self._connect()

    def _connect(self) -> None:
        """Give both ends of the cable their addresses."""
        for name, cable, address in zip(self.names, CABLES, ADDRESSES, strict=True):
            self._in(name, "ip", "addr", "add", f"{address}/24", "dev", cable)
            self._in(name, "ip", "link", "set", cable, "up")
            self._in(name, "ip", "link", "set", "lo", "up")

    @staticmethod
    def _in(name: str, *command: str) -> None:
        system("ip", "netns", "exec", name, *command)

    def shape(self, rate: int = 0, delay: int = 0, loss: float = 0) -> None:
        """Both cables carry `rate` Mbit/s (0 is all), after `delay` ms, but for `loss` percent of the packets.

        Delay and loss are netem's, or where the kernel has none, those of a cable of our own. Skips the test where
        there is neither.
        """
        if delay or loss:
            known = [*(["rate", f"{rate}mbit"] if rate else []), "delay", f"{delay}ms", "loss", f"{loss}%"]
            try:
                return self._each("netem", *known)
            except subprocess.CalledProcessError as error:
                self._relay(delay, loss, error.stderr.strip())
        if rate:
            self._each("tbf", "rate", f"{rate}mbit", "burst", "16kb", "latency", "400ms")

    def _relay(self, delay: int, loss: float, why: str) -> None:
        """Put a SlowCable in the place of the veth pair."""
        self._in(self.names[0], "ip", "link", "del", CABLES[0])
        try:
            self.relayed = SlowCable(CABLES, delay / 1000, loss / 100)
        except OSError as error:
            pytest.skip(f"this kernel has no netem ({why}), and no TUN devices ({error})")
        for name, cable in zip(self.names, CABLES, strict=True):
            system("ip", "link", "set", cable, "netns", name)
        self._connect()

    def cut(self) -> None:
        """Pull the cable: packets vanish, nobody is told. (A bucket that holds no packet lets none through.)"""
        self._each("tbf", "rate", "8bit", "burst", "10", "latency", "1ms")

    def _each(self, *discipline: str) -> None:
        for name, cable in zip(self.names, CABLES, strict=True):
            self._in(name, "tc", "qdisc", "replace", "dev", cable, "root", *discipline)

    def mend(self) -> None:
        """Put it back."""
        for name, cable in zip(self.names, CABLES, strict=True):
            self._in(name, "tc", "qdisc", "del", "dev", cable, "root")

    def start(self, host: int, command: list, root: Path, log: Path, **extra: str) -> subprocess.Popen:
        """Run a command on a host, under its own name, in a session of its own."""
        said = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": CABLES[host], "TP_SOCKET_IFNAME": CABLES[host]}
        enter = 'hostname "$1" && name="$1" && shift && exec ip netns exec "$name" "$@"'
        whole = ["unshare", "--uts", "sh", "-c", enter, "sh", self.names[host], *map(str, command)]
        with log.open("a") as file:
            process = subprocess.Popen(
                whole,
                cwd=root,
                env=environment(**(said | extra)),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def left(self) -> list[str]:
        """Command lines of processes that still live on the hosts."""
        found = []
        for name in self.names:
            for pid in pids(name):
                with suppress(OSError):
                    found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        return found

    def kill(self) -> None:
        """End all that runs on them."""
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for name in self.names:
            for pid in pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.processes.clear()

    def close(self) -> None:
        self.kill()
        if self.relayed is not None:
            self.relayed.close()
        take_down(self.names)


def take_down(names: Sequence[str] = NAMES) -> None:
    for name in names:
        system("ip", "netns", "del", name, check=False)
        shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def make_hosts() -> Hosts:
    """Two of them; skips the test, with the reason, where they may not be made."""
    if not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs ip and tc (Debian: iproute2)")
    take_down()  # of a killed test
    try:
        return Hosts()
    except (subprocess.CalledProcessError, OSError) as error:
        take_down()
        pytest.skip(f"network namespaces may not be made here: {getattr(error, 'stderr', '') or error}")
