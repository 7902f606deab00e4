"""Suite `kernels`: rates of the fused operators; kernel_rates makes its rows where it can be imported."""

from __future__ import annotations

from collections.abc import Iterable

from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable, need
from engine.bench.instrument.rows import Row, missing_row


def rows(options: Options) -> Iterable[Row]:
    """`engine.bench.suites.kernel_rates.rows(options)`, or one row that says that there is none."""
    try:
        made = need("engine.bench.suites.kernel_rates")
    except NotAvailable as error:
        return [missing_row("kernels", str(error))]
    if not hasattr(made, "rows"):
        return [missing_row("kernels", "engine.bench.suites.kernel_rates has no rows(options)")]
    return made.rows(options)
