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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels.device.launch import compiling_for

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
    grid: tuple[int, ...] = ()
    values: dict[str, Any] = {}
    """Every argument that is not a tensor."""
    moved_bytes: int = 0
    """Of its tensors, each once."""


@contextmanager
def caught_launches() -> Iterator[list[Launch]]:
    """Within, kernels are not launched but listed."""
    launches: list[Launch] = []

    def catch(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        described = describe(kernel, dict(zip(kernel.arg_names, args, strict=False)) | keywords, options)
        launches.append(described._replace(grid=tuple(grid)))

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
    scalars = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    tensors = {id(value): value.numel() * value.itemsize for value in values.values() if isinstance(value, Tensor)}
    return Launch(kernel, signature, constants, aligned, options, (), scalars, sum(tensors.values()))


def compile_for(launch: Launch, architecture: int) -> dict[str, Any]:
    """Registers a thread, spilled bytes, shared memory, and how many loads and stores of each width.

    Raises whatever Triton raises where the kernel does not compile.
    """
    usage, code = machine_code(launch, architecture)
    opcodes = re.findall(r"\b(LDGSTS|LDG|STG|LDL|STL|HGMMA|HMMA)((?:\.[A-Z0-9_]+)*)", code)
    widths: collections.Counter[str] = collections.Counter()
    for name, suffix in opcodes:
        width = re.search(r"\.(U8|U16|64|128)\b", suffix)
        widths[f"{name}.{width.group(1) if width else '32'}" if name in ("LDG", "STG", "LDGSTS") else name] += 1
    return usage | {"instructions": dict(sorted(widths.items()))}


def machine_code(launch: Launch, architecture: int) -> tuple[dict[str, int], str]:
    """Registers a thread, spilled bytes and shared memory; and the listing of the instructions.

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
    shared = compiled.metadata.shared
    return {"registers": registers, "spilled_bytes": stack + local, "shared_bytes": shared}, code


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def launches_of(operation: Callable[[], object], without: tuple[str, ...] = ("merge_kernel",)) -> list[Launch]:
    """The launches that `operation`, on meta tensors, would make; each kernel once, and none of `without`."""
    with caught_launches() as launches:
        operation()
    return list(
        {launch.kernel.__name__: launch for launch in launches if launch.kernel.__name__ not in without}.values()
    )


def depthwise(size: int, stride: int, dtype: torch.dtype) -> list[Launch]:
    """Forward and backward of a 96-channel layer of MobileNetV2's kind, everything fused, SiLU (the longest code)."""
    from kernels.device import depthwise as forward
    from kernels.device import depthwise_backward as back

    x, y = _images(96, 56, dtype), _images(96, 56 // stride, dtype)
    weight, vector, pads = _vector(96, 1, size, size), _vector(96), [size // 2] * 2
    prologue = (vector, vector, vector, "silu", 0.01)

    def both() -> None:
        forward.forward(x, weight, *prologue, stride, pads, True)
        back.backward(y, vector, vector, x, weight, y, vector, *prologue, stride, pads, True, True)

    return launches_of(both)


def pointwise(channels: int, outputs: int, groups: int, shuffle: int, dtype: torch.dtype) -> list[Launch]:
    """Forward and backward of a 1 × 1 layer, everything fused, SiLU."""
    from kernels.device import pointwise as forward
    from kernels.device import pointwise_backward as back

    x, y = _images(channels, 28, dtype), _images(outputs, 28, dtype)
    weight, vector, last = _vector(outputs, channels // groups, 1, 1), _vector(channels), _vector(outputs)
    prologue = (vector, vector, vector, "silu", 0.01)

    def both() -> None:
        forward.forward(x, weight, *prologue, groups, shuffle, True)
        back.backward(y, last, last, x, weight, y, last, *prologue, groups, shuffle, True, True)

    return launches_of(both)


def excited(channels: int, outputs: int, dtype: torch.dtype) -> list[Launch]:
    """Forward and backward of a 1 × 1 layer with a gate in its load."""
    from kernels.device import pointwise as forward
    from kernels.device import pointwise_backward as back

    x, y = _images(channels, 28, dtype), _images(outputs, 28, dtype)
    weight, vector, last, gate = (
        _vector(outputs, channels, 1, 1),
        _vector(channels),
        _vector(outputs),
        _vector(8, channels),
    )
    prologue = (vector, vector, vector, "silu", 0.01)

    def both() -> None:
        forward.forward(x, weight, *prologue, 1, 1, True, gate)
        back.backward(y, last, last, x, weight, y, last, *prologue, 1, 1, True, True, gate)

    return launches_of(both)


def products(channels: int, outputs: int, dtype: torch.dtype) -> list[Launch]:
    """The passes beside the library's products of a 1 × 1 layer, SiLU."""
    from kernels.device import library_products

    x, y = _images(channels, 28, dtype), _images(outputs, 28, dtype)
    weight, vector, last = _vector(outputs, channels, 1, 1), _vector(channels), _vector(outputs)
    prologue = (vector, vector, vector, "silu", 0.01)

    def both() -> None:
        library_products.forward(x, weight, *prologue, True)
        library_products.backward(y, last, last, x, weight, y, last, *prologue, True, True)

    return launches_of(both)


def elementwise(dtype: torch.dtype) -> list[Launch]:
    """norm_act, statistics, both shuffles and squeeze-and-excitation."""
    from kernels.device import excitation, norm_act, shuffle, squeeze_excite
    from kernels.device.statistics import batch_statistics

    x, vector, gate = _images(96, 28, dtype), _vector(96), _vector(8, 96)
    prologue = (vector, vector, vector)

    def all_of_them() -> None:
        norm_act.forward(x, *prologue, x, "silu", 0.01, "before")
        norm_act.backward(x, x, *prologue, x, "silu", 0.01, "before")
        norm_act.batch_norm_backward(x, x, *prologue)
        batch_statistics(x)
        for groups in (2, 3, 48):
            shuffle.forward(x, groups)
        squeeze_excite.pool(x, *prologue, "silu", 0.01)
        squeeze_excite.apply_gate(x, *prologue, "silu", 0.01, gate)
        squeeze_excite.five_sums(x, x, *prologue, "silu", 0.01)
        squeeze_excite.input_gradient(x, x, *prologue, "silu", 0.01, gate, gate)
        layers = _vector(4, 96), _vector(4), _vector(96, 4), vector
        kept = excitation.excite(_vector(8, 7, 96), 784, *layers, "silu", "sigmoid")
        excitation.through_gate(_vector(5, 8, 7, 96), layers[0], layers[2], "silu", "sigmoid", *kept[:3], 784)

    return launches_of(all_of_them, without=())


def _images(channels: int, side: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(8, channels, side, side, dtype=dtype, device="meta")


def _vector(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float32, device="meta")


CASES: dict[str, Callable[[torch.dtype], list[Launch]]] = {
    **{
        f"depthwise {size}x{size} stride {stride}": partial(depthwise, size, stride)
        for size in (3, 5, 7)
        for stride in (1, 2)
    },
    "pointwise 24 to 96": partial(pointwise, 24, 96, 1, 1),
    "pointwise 32 to 192": partial(pointwise, 32, 192, 1, 1),
    "pointwise 144 to 24": partial(pointwise, 144, 24, 1, 1),
    "pointwise 192 to 320": partial(pointwise, 192, 320, 1, 1),
    "pointwise 96 to 192 in 3 groups": partial(pointwise, 96, 192, 3, 1),
    "pointwise 256 to 512 in 4 groups, shuffled": partial(pointwise, 256, 512, 4, 4),
    "pointwise 96 to 32, excited": partial(excited, 96, 32),
    "pointwise 480 to 128, excited": partial(excited, 480, 128),
    "pointwise 256 to 320, the library's products": partial(products, 256, 320),
    "elementwise": elementwise,
}
"""What is compiled: a name, and its launches for a dtype."""


def kernel_name(launch: Launch) -> str:
    """The kernel as "file.function"."""
    return f"{launch.kernel.__module__.removeprefix('kernels.device.')}.{launch.kernel.__name__}"


def table(cases: list[str] | None = None, architectures: list[int] | None = None) -> list[dict[str, Any]]:
    """A row a kernel, dtype and architecture; raises whatever a kernel that does not compile raises."""
    rows = []
    for case in cases or CASES:
        for architecture in architectures or ARCHITECTURES:
            for dtype in ARCHITECTURES[architecture]:
                with compiling_for(architecture):
                    launches = CASES[case](dtype)
                for launch in launches:
                    row = {"case": case, "kernel": kernel_name(launch), "dtype": str(dtype).removeprefix("torch.")}
                    row |= {"sm": architecture, "num_warps": launch.options["num_warps"]}
                    rows.append(row | compile_for(launch, architecture))
    return rows


def main() -> None:
    """Write the table, or remake the chosen cases and architectures in it; it is saved after each of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--sm", action="append", type=int, choices=list(ARCHITECTURES))
    options = parser.parse_args()
    head = {
        "command": "python -m kernels.offline",
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
    }
    kept = json.loads(options.output.read_text(encoding="utf-8"))["kernels"] if options.output.is_file() else []
    places = list(CASES)
    for case in options.case or CASES:
        for architecture in options.sm or ARCHITECTURES:
            kept = [row for row in kept if (row["case"], row["sm"]) != (case, architecture)]
            kept += table([case], [architecture])
            kept.sort(key=lambda row: (places.index(row["case"]), row["sm"], row["dtype"], row["kernel"]))
            lines = ",\n".join("  " + json.dumps(row) for row in kept)
            options.output.write_text(f'{json.dumps(head)[:-1]}, "kernels": [\n{lines}\n]}}\n', encoding="utf-8")
    spilled = [row for row in kept if row["spilled_bytes"]]
    print(f"{len(kept)} kernels in {options.output}, {len(spilled)} with spills")


if __name__ == "__main__":
    main()
