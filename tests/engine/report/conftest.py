"""Run folders as training writes them."""

from tests.engine.made_runs import drawn_run, finished, gpu_rows, host_rows, make_run, metrics, whole_rows  # noqa: F401
