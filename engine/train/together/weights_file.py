"""model.safetensors: one file with the whole weights, however the ranks that trained them hold them."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from engine.runs.runfolder import RunFolder
from engine.runs.weights_facts import CHECKSUM, WeightsFacts, checksum
from engine.step.wrap import bare_module

EPOCH = "epoch"
"""In the file's metadata: after how many epochs its weights were taken."""


def whole_weights(accelerator: Accelerator, model, parts: bool) -> dict[str, Tensor]:
    """Copies of parameters and buffers in host memory, on the first rank; all ranks call this, others get none.

    model  as accelerate wrapped it
    parts  ranks hold parts of it: they bring them together
    """
    weights = accelerator.get_state_dict(model) if parts else bare_module(model).state_dict()
    named = weights.items() if accelerator.is_main_process else ()
    # copies: on a CPU `cpu()` is none, and the model may be about to get its own weights back
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named}


def write_weights(folder: RunFolder, tensors: dict[str, Tensor], facts: WeightsFacts, epoch: int) -> None:
    """Write them, as they are after so many epochs, with what is known of them. Raises CannotWrite."""
    from safetensors.torch import save_file

    with folder.file(folder.weights) as temporary:
        save_file(tensors, temporary, metadata=facts.as_metadata() | {EPOCH: str(epoch), CHECKSUM: checksum(tensors)})


def epoch_of(path: Path) -> str | None:
    """After how many epochs a file's weights were taken: "" where it does not say, None where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(EPOCH, "")
    except (OSError, SafetensorError):
        return None
