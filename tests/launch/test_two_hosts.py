"""Two hosts, each with its own address: they agree with one, and a cable that is cut ends both and is survived."""

import os
import re
import signal
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.plan.scaling.network import Link, all_reduce
from tests.launch.conftest import SCRIPT
from tests.launch.ranks import free_port
from tests.launch.test_distributed import compare
from tests.launch.two_hosts import ADDRESSES, CABLES, NAMES, make_hosts, pids

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SECONDS = 300


@pytest.fixture
def hosts():
    made = make_hosts()
    yield made
    made.close()


def torchrun(host: int, port: int) -> list:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node-rank", host, "--nproc_per_node", 1]
    return [*command, "--master-addr", ADDRESSES[0], "--master-port", port]


def accelerate(host: int, port: int) -> list:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/multinode.yaml"]
    command += ["--num_machines", 2, "--num_processes", 2, "--machine_rank", host]
    return [*command, "--main_process_ip", ADDRESSES[0], "--main_process_port", port]


def start(hosts, root, tmp_path, launcher, flags: list):
    """The same run on both hosts; returns (processes, logs)."""
    port = free_port()
    logs = [tmp_path / f"{name}.log" for name in NAMES]
    return [hosts.start(host, [*launcher(host, port), SCRIPT, *flags], root, logs[host]) for host in (0, 1)], logs


def said(logs) -> str:
    return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)


def finish(hosts, root, tmp_path, launcher, flags: list) -> None:
    processes, logs = start(hosts, root, tmp_path, launcher, flags)
    assert [process.wait(SECONDS) for process in processes] == [0, 0], said(logs)


@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_two_hosts_agree_with_one(hosts, root, tiny, rows, alone, tmp_path, launcher):
    finish(hosts, root, tmp_path, launcher, [*tiny, "--output", tmp_path / "run"])
    compare(rows, tmp_path / "run", alone)
    assert not hosts.left()


def test_a_slow_and_lossy_network_is_slower_and_right(hosts, root, tiny, rows, alone, tmp_path):
    hosts.shape(delay=20, loss=1)
    finish(hosts, root, tmp_path, torchrun, [*tiny, "--output", tmp_path / "run"])
    compare(rows, tmp_path / "run", alone)
    speeds = [
        statistics.median(row["images_per_second"] for row in rows(folder, "step"))
        for folder in (tmp_path / "run", alone)
    ]
    assert speeds[0] < speeds[1]
    assert 40 / speeds[0] > 0.04, "a step has at least two messages of 20 ms"
    assert hosts.relayed is None or hosts.relayed.lost, "netem's own loss is the kernel's"


def test_a_cut_cable_ends_both_and_is_survived(hosts, root, tiny, rows, alone, tmp_path):
    """Within the time that was set, with the lost peer's name and without a process left; mended, the run goes on."""
    run, patience = tmp_path / "run", 10
    flags = [*tiny, "--parallel.timeout", patience, "--output", run]
    processes, logs = start(hosts, root, tmp_path, torchrun, [*flags, "--epochs", 5000])
    deadline = time.monotonic() + SECONDS
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and all(one.poll() is None for one in processes), said(logs)
        time.sleep(0.2)
    hosts.cut()
    began = time.monotonic()
    codes = [process.wait(SECONDS) for process in processes]
    took = time.monotonic() - began
    assert all(codes), said(logs)
    first, second = (log.read_text(errors="replace") for log in logs)
    assert re.search(rf"rank 1 on {NAMES[1]}: no sign of life for {patience} s", first), first[-3000:]
    assert re.search(rf"rank 0 on {NAMES[0]}", second), second[-3000:]
    assert not hosts.left()
    assert took < 90, took
    hosts.mend()
    (last,) = sorted(run.glob("checkpoints/step-*"))[-1:]
    epochs = int(last.name.removeprefix("step-")) // 7 + 1
    finish(hosts, root, tmp_path, torchrun, ["--resume", run, "--epochs", epochs])
    assert rows(run, "epoch")[-1]["epoch"] == epochs


def elastic(host: int, port: int) -> list:
    """As configs/slurm/train.sbatch starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, "--max-restarts", 2]
    return [*command, "--rdzv_id", "job", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:{port}"]


def test_a_rank_that_dies_on_one_host_restarts_both(hosts, root, tiny, rows, alone, tmp_path):
    """The first host's launcher hears of it before its own rank has failed, and does not count the restart."""
    run = tmp_path / "run"
    flags = [*tiny, "--parallel.timeout", 20, "--output", run, "--resume", "auto"]
    processes, logs = start(hosts, root, tmp_path, elastic, flags)
    deadline = time.monotonic() + SECONDS
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and all(one.poll() is None for one in processes), said(logs)
        time.sleep(0.05)
    for pid in pids(NAMES[1]):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if SCRIPT.encode() in line and b"torch.distributed.run" not in line:
            os.kill(pid, signal.SIGKILL)
            break
    assert [process.wait(SECONDS) for process in processes] == [0, 0], said(logs)
    assert [row["event"] for row in rows(run, "event")] == ["start", "resume", "finished"]
    expected = load_file(alone / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_two_hosts_that_were_both_started_as_the_first(hosts, root, tiny, tmp_path):
    """By a Kubernetes job, say: each names both, and nobody waits for the one that cannot come."""
    logs = [tmp_path / f"{name}.log" for name in NAMES]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(free_port())}
    command = [sys.executable, SCRIPT, *tiny, "--output", tmp_path / "run"]
    processes = [hosts.start(host, command, root, logs[host], **place) for host in (0, 1)]
    assert [process.wait(SECONDS) for process in processes] == [2, 2], said(logs)
    for log in logs:
        words = log.read_text()
        assert words.count("two processes were started as rank 0") == 1 and all(name in words for name in NAMES)
    assert not (tmp_path / "run").exists()


SCRIPT_OF_SUMS = """
import sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
for size in map(int, sys.argv[1:]):
    tensor = torch.zeros(size // 4)
    dist.all_reduce(tensor)
    taken = []
    for _ in range(5):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        taken.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print("took", size, sorted(taken)[2], flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("rate", "delay"), [(200, 0), (50, 0), (50, 20)])
def test_the_projections_exchange_is_that_of_a_shaped_cable(hosts, root, tmp_path, rate, delay):
    """α and β are what tc was told; for 1 and 4 MiB the model is within a third of what gloo takes."""
    hosts.shape(rate, delay)
    script = tmp_path / "sums.py"
    script.write_text(SCRIPT_OF_SUMS)
    sizes, port = [2**20, 2**22], free_port()
    logs = [tmp_path / f"{name}.log" for name in NAMES]
    processes = [hosts.start(host, [*torchrun(host, port), script, *sizes], root, logs[host]) for host in (0, 1)]
    assert [process.wait(SECONDS) for process in processes] == [0, 0], said(logs)
    taken = dict(re.findall(r"took (\d+) ([\d.]+)", logs[0].read_text()))
    link = Link(delay / 1000, rate * 1e6 / 8)
    for size in sizes:
        predicted, measured = all_reduce(size, 2, link), float(taken[str(size)])
        print(f"{CABLES[0]} {rate} Mbit/s {delay} ms, {size >> 10} KiB: {predicted:.4f} s predicted, {measured:.4f} s")
        assert predicted / 1.35 < measured < predicted * 1.35
