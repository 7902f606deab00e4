"""A graph written for other programs: ONNX, or torch.export's .pt2, each with what it is in its metadata."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.config import ConfigError
from engine.runs.runfolder import atomic_file
from engine.use.export.graph import RawGraph

if TYPE_CHECKING:
    import onnxruntime

OPSET = 20
"""ONNX operators by default; 18 is the oldest that the exporter writes."""
LARGEST_ONNX = 2**31 - 2**20
"""Bytes that one ONNX file can hold: protobuf's limit, less its own fields."""
METADATA = "metadata.json"
"""Name of the metadata in a .pt2 archive."""


def trace(graph: RawGraph) -> torch.export.ExportedProgram:
    """The graph for any number of pictures of any size. Raises ConfigError where an operator cannot be traced."""
    dynamic = {"images": (*(torch.export.Dim(name) for name in ("batch", "height", "width")), None)}
    example = torch.zeros(2, 90, 120, 3, dtype=torch.uint8)
    try:
        with torch.no_grad(), _silent():
            return torch.export.export(graph.eval(), (example,), dynamic_shapes=dynamic)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        raise ConfigError(f"torch.export cannot trace this network: {_first_line(error)}") from error


def write_torch_export(path: Path, graph: RawGraph, facts: Mapping[str, str]) -> None:
    """Write a .pt2 that `torch.export.load` reads; `facts` are in its extra file metadata.json."""
    whole = io.BytesIO()  # where torch's archive meets a full disk, its destructor ends the process
    torch.export.save(trace(graph), whole, extra_files={METADATA: json.dumps(dict(facts))})
    with atomic_file(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


def write_onnx(
    path: Path,
    graph: RawGraph,
    facts: Mapping[str, str],
    opset: int = OPSET,
    program: torch.export.ExportedProgram | None = None,
) -> None:
    """Write an ONNX file with input `images` and outputs `probabilities` and `logits`; `facts` are its metadata.

    program  what `trace` gave for the graph, where it was traced already: a third of the work

    Raises ConfigError where onnx or onnxscript is missing, and for a network that one file cannot hold.
    """
    refuse_missing("onnx", "onnxscript")
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if size > LARGEST_ONNX:
        raise ConfigError(f"one ONNX file cannot hold {size / 2**30:.2f} GiB of weights; use --format torch-export")
    with torch.no_grad(), _silent():
        written = torch.onnx.export(
            program or trace(graph),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["probabilities", "logits"],
            verbose=False,
        )
    assert written is not None
    written.model.metadata_props.update(facts)
    written.model.producer_name = "HCR"
    with atomic_file(path) as temporary:
        written.save(temporary, external_data=False)


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU. Raises ConfigError where onnxruntime is missing."""
    refuse_missing("onnxruntime")
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def refuse_missing(*packages: str) -> None:
    """Raise ConfigError, saying what to install, unless all of these packages are there."""
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"this needs {' and '.join(missing)}, which the extra `export` has: pip install -e '.[export]', or "
            f"pip install {' '.join(missing)}"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _silent() -> Iterator[None]:
    """Without the exporters' progress and warnings, which are about themselves."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
