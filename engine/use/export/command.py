"""Export a trained network: what `launch/export.py` does."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.config import ConfigError, command_line, require
from engine.config.pixels.image_size import sides
from engine.data.bad_images import decode
from engine.data.sources.reading import Unreadable, read
from engine.runs.output import refuse_file
from engine.use.pictures import named_pictures
from engine.use.weights import Weights, read_weights

if TYPE_CHECKING:
    from engine.use.export.check import Runner

ENDINGS = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "safetensors-timm": ".safetensors",
    "safetensors-torchvision": ".safetensors",
}
"""How the file of a format is called."""
BATCH = 128
"""Pictures of a check that the network looks at at once."""


@dataclass(frozen=True)
class ExportConfig:
    """Which network, into what."""

    checkpoint: Path
    """A run folder (its best weights), a checkpoint in one, or a file of weights."""
    format: Literal["onnx", "torch-export", "safetensors-timm", "safetensors-torchvision"] = "onnx"
    """onnx and torch-export hold resize, crop, normalisation, network and softmax, and take uint8 [N, H, W, 3] of any
    size; the others hold the weights under that library's keys."""
    arch: str | None = None
    """The network, for weights that do not say: timm's and torchvision's files load too."""
    output: Path | None = None
    """File to write; none is model.onnx, model.pt2 or model-LIBRARY.safetensors beside the weights."""
    half: bool = False
    """Weights and activations of the network in fp16."""
    opset: int | None = None
    """ONNX operators to write, 18 or newer; none is 20."""
    check: str | None = None
    """Folder of pictures on which the file is compared with the network; below 99 % of equal classes the code is 1."""

    def __post_init__(self) -> None:
        require(self.opset is None or 18 <= self.opset <= 24, f"--opset must be from 18 to 24, not {self.opset}")
        idle = self.opset is not None and self.format != "onnx"
        require(not idle, f"--opset is for --format onnx: a file of --format {self.format} has no ONNX operators")


def parse(arguments: list[str] | None = None) -> ExportConfig:
    """The export that is asked for. Raises ConfigError as `command_line`."""
    return command_line(ExportConfig, arguments, "Export a trained network for other programs.")


def run_export(config: ExportConfig) -> int:
    """Write the file, check it where asked; returns the exit code. Raises ConfigError with nothing written."""
    refuse_ending(config)
    pictures = 0 if config.check is None else refuse_unreadable(config.check)
    library = config.format.partition("-")[2] if config.format.startswith("safetensors") else ""
    name = f"model-{library}" if library else "model"
    beside = config.checkpoint if config.checkpoint.is_dir() else config.checkpoint.parent
    output = config.output or beside / f"{name}{ENDINGS[config.format]}"
    refuse_file(output)
    weights = read_weights(config.checkpoint, config.arch)
    weights.refuse_batch(min(BATCH, pictures))
    if weights.preprocessing is None:
        print(f"{weights.path} does not say which pixels it expects; assumed: {weights.expected().describe()}")
    runner = _write_library(config, weights, output, library) if library else _write_graph(config, weights, output)
    print(f"{weights.arch}, {weights.class_count} classes, {weights.expected().describe()}")
    print(f"written to {output}")
    if config.check is None:
        return 0
    from engine.step.plan import Hardware, choose_precision
    from engine.use.export.check import ENOUGH, check
    from engine.use.predict import Predictor

    agreement = check(Predictor(weights, BATCH, "fp32"), runner, config.check)
    print(f"the network in fp32 and the file in {precision_of(config, library)}, {agreement.describe()}")
    if (usual := choose_precision("auto", Hardware.detect())) != "fp32":
        print(f"note: predict and evaluate run in {usual} here unless --precision fp32 is given; that was not compared")
    return 0 if agreement.same >= ENOUGH else 1


def refuse_ending(config: ExportConfig) -> None:
    """Raise ConfigError for an output whose ending is another format's, or nobody's; a name may have none."""
    named, ending = config.output.suffix if config.output else "", ENDINGS[config.format]
    if named in ("", ending):
        return
    others = [name for name, one in ENDINGS.items() if one == named]
    hint = f" ({named} is that of --format {' or '.join(others)})" if others else ""
    raise ConfigError(
        f"--output {config.output}: the name of a file of --format {config.format} ends in {ending}{hint}"
    )


def refuse_unreadable(folder: str) -> int:
    """How many pictures there are to compare on. Raises ConfigError, before anything is written, where none is one."""
    paths = named_pictures([folder])
    for path in paths:
        with suppress(Unreadable):
            decode(read(path))
            return len(paths)
    raise ConfigError(f"--check {folder}: none of its {len(paths)} pictures can be read")


def precision_of(config: ExportConfig, library: str) -> str:
    """What the checked file computes in: a library's model in fp32, whatever its weights are stored in."""
    if library:
        return "fp32 (before its weights were stored in fp16)" if config.half else "fp32"
    return "fp16" if config.half else "fp32"


def facts_of(config: ExportConfig, weights: Weights) -> dict[str, str]:
    """What a file says of itself."""
    return {
        "network": weights.arch,
        "classes": json.dumps(weights.class_names()),
        "preprocessing": weights.expected().to_json(),
        "precision": "fp16" if config.half else "fp32",
        "run": weights.path.resolve().parent.name,
        "weights_sha256": weights.digest(),
    }


def _write_graph(config: ExportConfig, weights: Weights, output: Path) -> Runner:
    from engine.use.export.check import onnx_runner, torch_export_runner
    from engine.use.export.graph import RawGraph
    from engine.use.export.graph_files import OPSET, refuse_missing, write_onnx, write_torch_export

    if config.format == "onnx":
        refuse_missing("onnx", "onnxscript", *(["onnxruntime"] if config.check else []))
    graph = RawGraph(weights.build(), weights.expected(), config.half)
    facts = facts_of(config, weights) | {"input": "uint8 RGB [N, H, W, 3]", "outputs": "probabilities, logits"}
    if config.format == "onnx":
        write_onnx(output, graph, facts, config.opset or OPSET)
        return onnx_runner(output) if config.check else _nobody
    write_torch_export(output, graph, facts)
    return torch_export_runner(output)


def _write_library(config: ExportConfig, weights: Weights, output: Path, library: str) -> Runner:
    from safetensors.torch import save_file

    from engine.runs.runfolder import atomic_file
    from engine.use.export.check import library_runner
    from engine.use.export.graph import Prepare
    from engine.use.export.library_keys import library_model, reference_for, under_library_keys

    reference = reference_for(weights.arch, library)
    auxiliary = any(key.startswith("auxiliary.") for key in weights.tensors)
    expected = weights.expected()
    theirs = library_model(reference.source, weights.class_count, weights.image_size, auxiliary, expected.channels)
    state = under_library_keys(weights.tensors, reference, theirs)
    theirs.load_state_dict(state)
    model = reference.source.partition(":")[2]
    facts = facts_of(config, weights) | {"architecture": model, "library": library}
    if weights.options.get("tensorflow_scaling"):
        theirs.transform_input = True  # type: ignore[assignment]
        facts["transform_input"] = "true"
    if library == "timm":
        facts["pretrained_cfg"] = json.dumps(
            {
                "architecture": model,
                "num_classes": weights.class_count,
                "input_size": [expected.channels, *sides(expected.image_size)],
                "mean": expected.mean,
                "std": expected.std,
                "crop_pct": expected.eval_crop,
                "interpolation": expected.interpolation,
                "label_names": weights.class_names(),
            }
        )
    halved = {key: one.half() if config.half and one.is_floating_point() else one for key, one in state.items()}
    with atomic_file(output) as temporary:
        save_file({key: one.contiguous() for key, one in halved.items()}, temporary, metadata=facts)
    return library_runner(theirs, Prepare(expected))


def _nobody(images):
    raise AssertionError("nothing was to be checked")
