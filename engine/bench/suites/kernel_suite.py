"""Suite `kernels`: rates of the fused operators; its rows are made by engine.bench.kernel_rates where that is there."""

from __future__ import annotations

from collections.abc import Iterable

from engine.bench.options import Options
from engine.bench.peers import NotAvailable, need
from engine.bench.rows import Row, missing_row


def rows(options: Options) -> Iterable[Row]:
    """`engine.bench.kernel_rates.rows(options)`, or one row that says that there is none."""
    try:
        made = need("engine.bench.kernel_rates")
    except NotAvailable as error:
        return [missing_row("kernels", str(error))]
    if not hasattr(made, "rows"):
        return [missing_row("kernels", "engine.bench.kernel_rates has no rows(options)")]
    return made.rows(options)
