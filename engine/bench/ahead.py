"""Compile what the timed steps of a report need, in parallel: `python -m engine.bench.ahead`, ended from outside.

Layers of the `kernels` suite, ours by Triton and the library's by inductor, in processes that each take a share; and
the networks of the `archs` suite as it compiles them ahead itself (engine.bench.instrument.precompile). What is found
here stays in the caches on disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch
import torch._inductor.config

from engine.bench.contact import NETWORKS
from engine.bench.instrument.kernel_layers import layers_of_all
from engine.bench.instrument.measure import one_line
from engine.bench.instrument.options import Options
from engine.bench.suites import arch_rows, kernel_rates
from engine.recovery.interrupt import end_with_parent
from engine.runs.provenance import ROOT

CORES_EACH = 4


def main(arguments: list[str]) -> None:
    """Without arguments everything; with SHARE and SHARES that part of the layers."""
    if arguments:
        share, shares = map(int, arguments)
        compile_layers(share, shares)
        return
    shares = max(1, (os.cpu_count() or 1) // CORES_EACH)
    command = [sys.executable, "-m", "engine.bench.ahead"]
    parts = [[*command, str(share), str(shares)] for share in range(shares)]
    layers = [subprocess.Popen(part, cwd=ROOT, preexec_fn=end_with_parent()) for part in parts]
    for row in arch_rows.rows(Options(archs=NETWORKS)):
        if row.key == arch_rows.AHEAD:  # there is none where networks are not compiled
            print(row.measure(time.monotonic() + 600.0)["summary"], flush=True)
            break
    for process in layers:
        process.wait()


def compile_layers(share: int, shares: int) -> None:
    """Every `shares`th layer through both contenders once, at the suite's own sizes."""
    device = torch.device("cuda")
    torch._inductor.config.autotune_local_cache = False  # what is fastest is found where nothing else runs
    for layer in layers_of_all(kernel_rates.NETWORKS, 224)[share::shares]:
        began = time.monotonic()
        try:
            kernel_rates.layer_row(layer, 128, torch.bfloat16, device, 1, 1)
            told = "compiled"
        except Exception as error:  # the suite itself will tell; here the other layers are still worth compiling
            told = one_line(error)
        print(f"{layer.key(torch.bfloat16)}: {told} ({time.monotonic() - began:.1f} s)", flush=True)
        torch._dynamo.reset()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
