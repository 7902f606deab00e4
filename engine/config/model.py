"""Which network: the fields of the group `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.config.checks import require
from engine.config.flag import TopLevel


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and how it is laid out."""

    arch: Annotated[str, TopLevel] = "resnext50"
    """Network name; `resnext` is resnext50."""
    compile: Annotated[Literal["auto", "on", "off"], TopLevel] = "auto"
    """torch.compile: auto is on with a GPU and off without. `--compile` and `--no-compile` work too."""
    cuda_graph: Annotated[Literal["auto", "on", "off"], TopLevel] = "auto"
    """Record a whole step as one CUDA graph and replay it, on one GPU: auto where that was measured to be faster."""
    pretrained: Annotated[str | None, TopLevel] = None
    """Start from these weights: a file, a run folder, timm:NAME or torchvision:NAME. Rows of the head whose
    class has the same name are kept, the others start anew."""
    finetune: Annotated[str, TopLevel] = "all"
    """What is trained: all, head, or a number: the last so many blocks and the head. The rest keeps its weights and
    its BatchNorm statistics."""
    width: Annotated[float, TopLevel] = 1.0
    """Width multiplier of all channels, for networks that have one (the MobileNets, ShuffleNets)."""
    dropout: float | None = None
    """Dropout before the last layer, for networks that have one; none is the network's own."""
    drop_path: float | None = None
    """Largest rate of dropped residual branches, for networks that have one; none is the network's own."""
    fused: Annotated[Literal["auto", "on", "off"], TopLevel] = "auto"
    """Layers through the fused operators in kernels/, with one raw tensor kept a convolution: auto is on for a GPU on
    which they were measured, on takes them anywhere (their plain twins on a CPU)."""
    channels_last: bool = True
    """Keep images and weights as [N, H, W, C] in memory: faster convolutions on GPUs and on CPUs."""

    def __post_init__(self) -> None:
        require(
            self.finetune in ("all", "head") or (self.finetune.isascii() and self.finetune.isdigit()),
            f"--finetune must be all, head or a number of blocks, not {self.finetune}",
        )
        require(self.width > 0, f"--width must be above 0, not {self.width}")
        for name, rate in (("dropout", self.dropout), ("drop-path", self.drop_path)):
            require(rate is None or 0 <= rate < 1, f"--model.{name} must be in [0, 1), not {rate}")

    def options(self) -> dict[str, float]:
        """What `archs.build` is told beside the name: the options that were asked for."""
        asked = {"width": self.width, "dropout": self.dropout, "drop_path": self.drop_path}
        return {name: value for name, value in asked.items() if value is not None and (name, value) != ("width", 1.0)}
