"""Learning from another network: the fields of the group `distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.config.checks import require
from engine.config.flag import Distill


@dataclass(frozen=True)
class DistillConfig:
    """A trained network whose outputs are learnt beside the labels."""

    teacher: Annotated[str | None, Distill] = None
    """Run folder or weights file of the network to learn from, timm:NAME or torchvision:NAME; it has the same
    classes."""
    mode: Literal["logits", "hard"] = "logits"
    """Its softened probabilities (Hinton et al. 2015, arXiv:1503.02531), or its guess as a second label (DeiT,
    arXiv:2012.12877, section 4)."""
    temperature: float = 3.0
    """logits: both networks' logits are divided by this."""
    weight: float = 0.5
    """Share of the loss that is the teacher's; the labels have the rest."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep the teacher's logits for runs with the same images in the same draws; auto: up to 1 GiB for a whole run."""

    def __post_init__(self) -> None:
        require(0 < self.temperature <= 100, f"--distill.temperature must be in (0, 100], not {self.temperature}")
        require(0 < self.weight <= 1, f"--distill.weight must be in (0, 1], not {self.weight}")
        if self.teacher is None:
            given = next((name for name in ("mode", "temperature", "weight", "cache") if self._given(name)), None)
            require(given is None, f"--distill.{given} has no effect without --distill TEACHER")
        plain = self.mode == "logits" or not self._given("temperature")
        require(plain, "--distill.temperature has no effect on --distill.mode hard, which takes the teacher's guess")

    def _given(self, name: str) -> bool:
        return getattr(self, name) != getattr(DistillConfig, name)

    def refuse(self, sam: float) -> None:
        """Raise ConfigError beside sharpness-aware minimisation."""
        require(
            self.teacher is None or not sam,
            "--distill does not go with --optim.sam, whose second pass would need the teacher's outputs at a loss that "
            "was never evaluated with it; use one of them",
        )
