"""Run folders as training writes them."""

from tests.engine.made_runs import finished, gpu_rows, host_rows, make_run, metrics  # noqa: F401
