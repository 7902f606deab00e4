"""In which numbers: the field of the group `precision`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.config.flag import TopLevel


@dataclass(frozen=True)
class PrecisionConfig:
    """Numbers."""

    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], TopLevel] = "auto"
    """Compute dtype under autocast (parameters stay fp32); auto is bf16 where the chip has it, fp16 with loss
    scaling on Volta and Turing, else fp32."""
    tf32: Literal["on", "convolutions", "off"] = "on"
    """What a GPU from Ampere on rounds fp32 factors to TF32's 10 bits in: products of matrices and convolutions, as
    timm's training does; `convolutions` alone is PyTorch's own default; off is fp32 throughout."""
