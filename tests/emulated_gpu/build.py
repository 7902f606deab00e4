"""Builds the emulated GPU's libraries for the PyTorch of this Python, once: `python tests/emulated_gpu/build.py`.

Needs g++, and the CUDA headers that PyTorch's own packages bring (nvidia-cuda-runtime, and Triton's copy of `crt/`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "source"
RUNTIME = "libcudart.so.13"
FLAGS = ["-O1", "-fPIC", "-shared", "-Wall"]


class CannotBuild(RuntimeError):
    """This machine lacks something; the message says what."""


def build(cache: Path | None = None) -> Path:
    """The folder with the libraries, built where they are not there yet; about half a minute.

    cache  folder that keeps them, one below it for each version; $EMULATED_GPU_CACHE or ~/.cache/hcr/emulated_gpu

    Raises CannotBuild without g++, PyTorch's CUDA packages or a compilation that succeeds.
    """
    if shutil.which("g++") is None:
        raise CannotBuild("no g++ to build the emulated GPU with")
    torch = _folder("torch")
    site = torch.parent
    real = site / "nvidia" / "cu13" / "lib" / RUNTIME
    headers = [site / "nvidia" / "cu13" / "include", _folder("triton") / "backends" / "nvidia" / "include"]
    missing = [str(path) for path in (real, *headers) if not path.exists()]
    if missing:
        raise CannotBuild(f"PyTorch came without CUDA 13's packages: no {missing[0]}")
    chosen = cache or os.environ.get("EMULATED_GPU_CACHE") or Path.home() / ".cache" / "hcr" / "emulated_gpu"
    folder = Path(chosen).expanduser().resolve() / _key()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _compile(made, torch, real, headers)
        made.rename(folder)  # whole or not at all
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise CannotBuild(f"{package} is not installed")
    return Path(found.submodule_search_locations[0])


def _key() -> str:
    """Changes with the sources, PyTorch, Python and the compiler."""
    parts = [version("torch"), sys.version, _run(["g++", "-dumpfullversion"]), Path(__file__).read_text("utf-8")]
    parts += [path.read_text("utf-8") for path in sorted(SOURCE.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str], **extra) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **extra)
    if done.returncode:
        raise CannotBuild(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _compile(out: Path, torch: Path, real: Path, headers: list[Path]) -> None:
    """The three stand-ins for NVIDIA's libraries, and the operators, two compilers at a time."""
    # The second folder only has what the first one lacks.
    cuda = ["-I", str(headers[0]), "-idirafter", str(headers[1])]
    plain = ["g++", "-std=c++17", *FLAGS, *cuda]
    operators = ["g++", "-std=c++20", *FLAGS, "-w", *cuda, "-I", str(torch / "include"), str(SOURCE / "operators.cpp")]
    runtime = out / RUNTIME
    with ThreadPoolExecutor(1) as second:
        slow = second.submit(_run, [*operators, "-c", "-o", str(out / "operators.o")])
        _compile_runtime(plain, runtime, real)
        for name, library in (("driver", "libcuda.so.1"), ("nvml", "libnvidia-ml.so.1")):
            source = str(SOURCE / f"{name}.cpp")
            _run([*plain, source, f"-Wl,-soname,{library}", "-o", str(out / library)])
        slow.result()
    libraries = ["-L", str(torch / "lib"), "-lc10", "-ltorch_cpu", "-lc10_cuda", str(runtime)]
    _run(["g++", "-shared", str(out / "operators.o"), *libraries, "-o", str(out / "liboperators.so")])
    (out / "operators.o").unlink()


def _compile_runtime(compiler: list[str], library: Path, real: Path) -> None:
    """The CUDA runtime; what only the real one has answers cudaErrorNotSupported (801)."""
    parts = library.parent
    own, rest, versions = parts / "runtime.o", parts / "rest.c", parts / "versions"
    _run([*compiler, "-c", str(SOURCE / "runtime.cpp"), "-o", str(own)])
    missing = _functions(real, dynamic=True) - _functions(own, dynamic=False)
    rest.write_text("".join(f"int {name}() {{ return 801; }}\n" for name in sorted(missing)), "utf-8")
    _run(["gcc", "-O1", "-fPIC", "-w", "-c", str(rest), "-o", str(parts / "rest.o")])
    versions.write_text(f"{RUNTIME} {{ global: *; }};\n", "utf-8")
    named = [f"-Wl,-soname,{RUNTIME}", f"-Wl,--version-script,{versions}"]
    _run(["g++", "-shared", *named, str(own), str(parts / "rest.o"), "-ldl", "-o", str(library)])
    for part in (own, rest, versions, parts / "rest.o"):
        part.unlink()


def _functions(library: Path, dynamic: bool) -> set[str]:
    """Names of the functions that a library or object file defines."""
    table = _run(["nm", *(["-D"] if dynamic else []), "--defined-only", str(library)])
    symbols = [line.split() for line in table.splitlines()]
    return {symbol[2].partition("@")[0] for symbol in symbols if len(symbol) == 3 and symbol[1] == "T"}


if __name__ == "__main__":
    try:
        print(build())
    except CannotBuild as error:
        sys.exit(f"error: {error}")
