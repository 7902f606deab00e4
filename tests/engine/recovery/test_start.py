"""Ctrl-C while torch is imported, launchers that are killed, names that no terminal can show."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta

import psutil
import pytest
from torch.distributed import PrefixStore, TCPStore

from engine.recovery import interrupt
from engine.runs.door import CannotWrite
from tests.waiting import PATIENCE, until

TRAIN = [sys.executable, "launch/train.py", "--output", "/nonexistent/folder"]


def heard() -> None:
    """A background shell lets its programs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("after", [0.3, 0.8, 1.6])
def test_ctrl_c_in_start_up_is_one_line(root, after):
    """F11, at moments at which Python has started and torch, accelerate or DALI is being imported."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; from engine.recovery import start; begin = start.begin; "
    code += "start.begin = lambda **more: (begin(**more), print('begun', flush=True)); "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, "launch/train.py", "--output", "/nonexistent/folder"]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    if process.poll() is not None:
        pytest.skip("this machine had started already")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode == 2:
        pytest.skip("this machine had started already")
    assert process.returncode == 130, errors
    assert errors.split("\n") in (["", "stopped before the run began", ""], [*errors.split("\n")[:1], ""])
    assert "Traceback" not in errors


def test_ctrl_c_in_a_write_leaves_nothing_half_written(root, tmp_path):
    """Before the run has begun its description and plan are written; no handler that waits is there yet."""
    code = "import sys, time; sys.path.insert(0, '.'); from pathlib import Path; "
    code += "from engine.recovery.start import begin; begin(); from engine.runs.door import atomic_file\n"
    code += "with atomic_file(Path(sys.argv[1])) as draft:\n"
    code += f"    draft.write_text('half'); print('half', flush=True); time.sleep({PATIENCE})"
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json")]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout.readline() == "half\n" and len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and not list(tmp_path.iterdir())


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def end(launcher: subprocess.Popen, *processes: psutil.Process) -> None:
    """Leave nothing running where a test fails."""
    launcher.kill()
    launcher.wait()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


WAIT = "import sys, time; sys.path.insert(0, '.'); from engine.recovery.start import begin; {before}; begin(); "
WAIT += f"print('followed', flush=True); time.sleep({2 * PATIENCE})"


@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
@pytest.mark.parametrize("before", ["pass", "time.sleep(0.5)"], ids=["at once", "while it starts"])
def test_a_killed_launcher_takes_its_process_along(root, variable, before):
    """F6: whether it dies before the process follows it, or afterwards."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAIT.format(before=before)!r}])"
    env = os.environ | {variable: "no"}
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=env, stdout=subprocess.PIPE, text=True)
    (child,) = until(lambda: children_of(launcher))
    if before == "pass":
        assert launcher.stdout.readline() == "followed\n"
    else:
        until(lambda: "-c" in child.cmdline() and child.num_threads() and time.sleep(0.2) is None)
    launcher.kill()
    launcher.wait()
    until(lambda: gone(child))
    launcher.stdout.close()


def test_an_orphan_is_known_by_its_new_parent(monkeypatch, tmp_path):
    for command, lost in ((b"/sbin/init\0", True), (b"/usr/bin/tini\0--\0", True), (b"/usr/bin/python3\0x\0", False)):
        (tmp_path / "cmdline").write_bytes(command)
        monkeypatch.setattr(interrupt, "Path", lambda _: tmp_path / "cmdline")
        assert interrupt.orphaned(1) is lost
    assert not interrupt.orphaned(1234)


def test_a_name_that_is_no_text_is_escaped_on_any_terminal(root):
    """W6."""
    code = "import sys; sys.path.insert(0, '.'); from engine.recovery.start import begin; begin(); "
    code += "print('name caf\\udce9.jpg, \\u00e9'); print('\\udcff', file=sys.stderr)"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "name caf\\udce9.jpg, \\xe9\n", "\\udcff\n")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("steps", [0, 3])
def test_a_killed_torchrun_leaves_no_orphans(root, tmp_path, steps):
    """F6: at any time, in start-up and in the middle of training; what was begun is saved."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["tests/launch/norm_free.py", "--image-size", "32", "--arch", "norm_free", "--batch-size", "8"]
    command += ["--epochs", "5000", "--log.every", "1", "--log.no-plots", "--precision", "fp32", "--output", str(run)]
    command += ["--parallel.timeout", "86400"]  # none of them ends because the others do not answer
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = run / "metrics.jsonl"
    workers = []
    try:
        workers = until(lambda: len(found := children_of(process)) >= 2 and found, [process])
        if steps:
            until(lambda: metrics.exists() and metrics.read_text().count("step") > steps, [process])
        process.kill()
        process.wait()
        until(lambda: all(gone(one) for one in workers))
    finally:
        end(process, *workers)
    if steps:
        assert list((run / "checkpoints").glob("step-*/trainer.pt"))


@pytest.mark.distributed
def test_a_rank_that_waits_for_another_ends_with_its_launcher(root, tmp_path):
    """In the rendezvous it is in native code, where no handler of Python's is reached: it stayed until the time-out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = "--arch convnet_bn --image-size 16 --data.name digits --precision fp32 --batch-size 4 "
    flags += "--parallel.timeout 86400 --output"  # it does not end because nobody comes
    command = [sys.executable, "launch/train.py", *flags.split(), str(tmp_path / "run")]
    code = f"import subprocess, sys; subprocess.run({command!r})"
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = os.environ | rank | {"TORCHELASTIC_RUN_ID": "no", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=env)
    children = []
    try:
        children = until(lambda: children_of(launcher), [launcher])
        (child,) = children
        until(lambda: any(one.laddr.port == port for one in child.net_connections()), [launcher])
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=PATIENCE))
        PrefixStore("hcr/meeting/0", store).wait(["roll/0"])  # it has said that it is there, and looks for the other
        until(lambda: child.status() == psutil.STATUS_SLEEPING, [launcher])
        launcher.kill()
        launcher.wait()
        until(lambda: gone(child))
    finally:
        end(launcher, *children)


@pytest.mark.parametrize("gibibytes", [1.0, 2.0, 4.0])
def test_too_little_address_space_is_one_sentence(root, gibibytes):
    """F16: wherever in start-up it runs out."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gibibytes * 2**30),) * 2)

    done = subprocess.run(
        [sys.executable, "launch/train.py", "--output", "/nonexistent/folder", "--data.limit", "8"],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    if done.returncode == 2:
        pytest.skip("that was enough to get to the folder")
    assert done.returncode == 1 and "out of host memory" in done.stderr and "ulimit -v" in done.stderr, done.stderr[
        -800:
    ]
    assert "Traceback" not in done.stderr


def test_what_is_no_lack_of_memory_is_not_called_one():
    from engine.recovery.start import in_words

    with pytest.raises(RuntimeError, match="a bug"):
        in_words(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(FileNotFoundError):
        in_words(lambda: open("/nonexistent/file").close())  # noqa: PTH123
    assert in_words(lambda: (_ for _ in ()).throw(MemoryError())) == 1
    assert in_words(lambda: (_ for _ in ()).throw(RuntimeError("in an operator:\n\nstd::bad_alloc"))) == 1
    assert in_words(lambda: (_ for _ in ()).throw(PermissionError(13, "Permission denied", "photos"))) == 2


def test_a_gpu_s_memory_that_ran_out_is_one_sentence(capsys):
    import torch

    from engine.recovery.start import in_words

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert in_words(lambda: (_ for _ in ()).throw(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of device memory (CUDA out of memory. Tried") and "smaller --batch-size" in said


def test_a_reader_that_has_seen_enough_is_no_error(root):
    """As `| head -1` is one: exit code of SIGPIPE, and not a word."""
    program = (
        "import sys\n"
        "from engine.recovery.start import in_words\n"
        "def main():\n"
        "    for number in range(100000):\n"
        "        print('picture', number)\n"
        "    return 0\n"
        "sys.exit(in_words(main))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "picture 0\n"
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE and told == ""


def test_another_broken_pipe_is_a_fault():
    from engine.recovery.start import in_words

    with pytest.raises(BrokenPipeError):
        in_words(lambda: (_ for _ in ()).throw(BrokenPipeError(32, "of a rank")))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CannotWrite(errno.EROFS, "x/page.html cannot be written: the disk is read-only"), "x/page.html cannot be"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/x/page.html"), "/x/page.html: the disk is read-only"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_sentence(capsys, error, told):
    """F8, of whatever an entry point writes: a leaderboard, an evaluation, a sweep's page."""

    from engine.recovery.start import in_words

    def main() -> int:
        raise error

    assert in_words(main) == 1
    said = capsys.readouterr().err
    assert told in said and said.startswith("error: ") and said.count("\n") == 1


def test_ctrl_c_in_another_program_names_no_run(root):
    """An evaluation or a prediction that had begun."""
    code = "import time; from engine.recovery.start import begin; begin(); print('begun', flush=True); "
    code += f"time.sleep({PATIENCE})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and errors == "\nstopped\n"
