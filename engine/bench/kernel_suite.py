"""Suite `kernels`: the fused operators beside the library's, layer by layer and as whole steps, a row a network.

`kernels.dispatch` reads the layers of profiles/<gpu>/kernels.json: this suite is what lets it choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from engine.bench.bare_loop import DTYPES
from engine.bench.options import Options
from engine.bench.peers import NotAvailable, need
from engine.bench.rows import Row, missing_row
from engine.planner import Hardware, choose_precision

MODULE = "engine.bench.kernel_rates"


def rows(options: Options) -> Iterator[Row]:
    """The layers of each network first, then each network's step; one row that says so where there are no rates."""
    try:
        made = need(MODULE)
    except NotAvailable as error:
        yield missing_row("kernels", str(error))
        return
    hardware, tiny = Hardware.detect(), options.dry_run
    settings = {
        "batch": options.batch_size or (2 if tiny else 128),
        "image_size": options.image_size or (32 if tiny else 224),
        "precision": options.precision or choose_precision("auto", hardware),
        "rounds": options.rounds or (1 if tiny else 5),
        "repeats": 1 if tiny else 10,
        "most_layers": 1 if tiny else None,
    }
    for kind, networks, seconds in (("networks", made.NETWORKS, 25.0), ("steps", made.STEPS, 40.0)):
        for arch in (options.archs or networks)[: 1 if tiny else None]:
            part = settings | {kind: [arch]}
            key = f"{arch} {'layers' if kind == 'networks' else 'step'}"
            yield Row(key, part, partial(measure, part, hardware.type), seconds=seconds)


def measure(settings: dict[str, Any], device: str, deadline: float) -> dict[str, Any]:
    """`engine.bench.kernel_rates.kernel_rates` of one network's layers, or of its step."""
    given = {"networks": (), "steps": ()} | {key: value for key, value in settings.items() if key != "precision"}
    return need(MODULE).kernel_rates(torch.device(device), dtype=DTYPES[settings["precision"]], **given)
