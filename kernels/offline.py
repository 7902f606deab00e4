"""Compile the kernels for GPUs that are not here, and read registers, spills and load widths from the machine code.

    python -m kernels.offline            writes profiles/kernels-offline.json, a row a kernel × dtype × architecture

The launchers run on tensors without memory (device `meta`) and their launches are caught, so what is compiled
is what would be launched: the same block sizes, warps and divisibility.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "profiles" / "kernels-offline.json"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}
ARCHITECTURES = {75: (torch.float16, torch.float32), 80: tuple(POINTERS), 90: tuple(POINTERS)}
OPTIONS = ("num_warps", "num_stages", "maxnreg")


class Launch(NamedTuple):
    """One kernel as a launcher would start it."""

    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: list[int]
    options: dict[str, int]


@contextmanager
def caught_launches() -> Iterator[list[Launch]]:
    """Within, kernels are not launched but listed."""
    launches: list[Launch] = []

    def catch(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        launches.append(describe(kernel, dict(zip(kernel.arg_names, args, strict=False)) | keywords, options))

    with mock.patch.object(JITFunction, "run", catch):
        yield launches


def describe(kernel: JITFunction, values: dict[str, Any], options: dict[str, int]) -> Launch:
    """Types, constants and divisibility of a launch's arguments, by the JIT's rules."""
    signature, constants, aligned = {}, {}, []
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            aligned.append(place)
        elif parameter.is_constexpr or value == 1:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(place)
    return Launch(kernel, signature, constants, aligned, options)


def compile_for(launch: Launch, architecture: int) -> dict[str, Any]:
    """Registers a thread, spilled bytes, shared memory, and how many loads and stores of each width.

    Raises whatever Triton raises where the kernel does not compile.
    """
    attributes = {(place,): [["tt.divisibility", 16]] for place in launch.aligned}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("cuobjdump", "--dump-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of {launch.kernel.__name__}: {usage}")
    registers, stack, _, local = map(int, found.groups())
    opcodes = re.findall(r"\b(LDG|STG|LDL|STL|HMMA|HGMMA|IMMA|LDGSTS)((?:\.[A-Z0-9_]+)*)", code)
    widths: collections.Counter[str] = collections.Counter()
    for name, suffix in opcodes:
        width = re.search(r"\.(U8|U16|64|128)\b", suffix)
        widths[f"{name}.{width.group(1) if width else '32'}" if name in ("LDG", "STG") else name] += 1
    return {
        "registers": registers,
        "spilled_bytes": stack + local,
        "shared_bytes": compiled.metadata.shared,
        "instructions": dict(sorted(widths.items())),
    }


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def launches_of(operation: Callable[[], object]) -> list[Launch]:
    """The launches that `operation`, on meta tensors, would make; each kernel once."""
    with caught_launches() as launches:
        operation()
    return list({launch.kernel.__name__: launch for launch in launches}.values())
