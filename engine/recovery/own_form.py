"""Checkpoints in DeepSpeed's own form, `zero/`, as older versions of this project wrote them under ZeRO.

Only the stage and the number of processes that wrote one take it; from then on checkpoints are in the form for all
(engine.recovery.zero_parts).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.config import require


@contextmanager
def without_pickle() -> Iterator[None]:
    """Make every torch.load inside use weights_only=True, also those in DeepSpeed that ask for the contrary."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler, ZeroStageEnum, fragment_address]
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def written_by(folder: Path) -> tuple[str, int]:
    """(stage, ranks) that wrote a `zero/`: "3", "1 or 2", or "0", which any number takes."""
    state = folder / "state"
    ranks = len(list(state.glob("*_optim_states.pt")))
    if not ranks:
        return "0", 0
    return "1 or 2" if (state / "mp_rank_00_model_states.pt").is_file() else "3", ranks


def load_own_form(checkpoint: Path, engine: Any, ranks: int) -> None:
    """Fill an engine of so many ranks from `checkpoint`; None is a run without DeepSpeed.

    Raises ConfigError for another stage or number of ranks than wrote it.
    """
    stage, wrote = written_by(checkpoint / "zero")
    fits = engine is not None and str(engine.zero_optimization_stage()) in stage.split(" or ")
    require(
        fits and wrote in (0, ranks),
        f"checkpoint {checkpoint} is in DeepSpeed's own form, as older versions wrote it, which only ZeRO stage "
        f"{stage} {f'on {wrote} processes ' if wrote else ''}takes: go on with it there; the next one is "
        "for all",
    )
    with without_pickle():
        engine.load_checkpoint(str(checkpoint / "zero"), tag="state")
