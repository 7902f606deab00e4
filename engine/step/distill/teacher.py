"""The network that a run learns from: what it is trained on, and its logits of the run's own images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archs
from archs.channels import Normalised, renormalisation
from archs.weights import WeightsMismatch, our_keys, refuse_other_count
from engine.config import ConfigError, require
from engine.config.pixels.image_size import ImageSize, sides
from engine.data.preprocessing import Preprocessing
from engine.data.published import LIBRARIES, published_classes, published_preprocessing
from engine.runs.weights_facts import CHECKSUM, WeightsFacts
from engine.step.weights.described import refuse_other_description
from engine.step.weights.files import file_metadata, file_shapes, read_weight_file
from engine.step.weights.pretrained import library_network

FLAG = "--distill"


class TeacherNetwork(nn.Module):
    """`network` on images that were prepared for another: [N, C, H, W] -> logits [N, classes], float32.

    theirs, ours  the preprocessing it was trained with, None where nobody says, and that of the images
    size          side in pixels that it was trained at; other images are resized
    """

    def __init__(
        self, network: nn.Module, theirs: Preprocessing | None, ours: Preprocessing | None, size: ImageSize = 0
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        channels = 3 if theirs is None else theirs.channels
        require(
            ours is None or ours.channels in (1, channels),
            f"{FLAG}: the teacher looks at grey images, and these are coloured; --data.channels 1 makes them grey",
        )
        known = (one and Normalised(one.mean, one.std) for one in (theirs, ours))
        scale, shift = renormalisation(*known, channels)
        spread = ours is not None and ours.channels != channels
        self.moved = spread or any(value != 1.0 for value in scale) or any(shift)
        self.register_buffer("scale", torch.tensor(scale).view(1, channels, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.moved:
            images = images * self.scale.to(images.dtype) + self.shift.to(images.dtype)
        if self.size and tuple(images.shape[2:]) != sides(self.size):
            images = F.interpolate(images, sides(self.size), mode="bilinear", align_corners=False)
        output = self.network(images)
        return getattr(output, "logits", output).float()


@dataclass(frozen=True)
class Teacher:
    """What is known of a teacher before it is loaded."""

    name: str
    classes: list[str] | None
    """In the order of its outputs; None where nobody says."""
    preprocessing: Preprocessing | None
    image_size: ImageSize
    facts: WeightsFacts | None = field(default=None, repr=False)
    """What a weights file of ours says; None for a library's."""
    checksum: str = ""

    @classmethod
    def named(cls, name: str) -> Teacher:
        """What `timm:NAME`, `torchvision:NAME`, a run folder or one of our weights files is.

        Raises ConfigError for what is none of these.
        """
        if name.startswith(LIBRARIES):
            try:
                expected = published_preprocessing(name)
            except ConfigError as error:
                raise ConfigError(f"{FLAG} {name}: {error}") from None
            return cls(name, published_classes(name), expected, expected.image_size, checksum=name)
        metadata = file_metadata(Path(name))
        if not metadata:
            read_weight_file(Path(name), f"{FLAG} {name}")  # says what is wrong with it, if anything is
        facts = WeightsFacts.from_metadata(metadata, f"{FLAG} {name}")
        tensors, count = file_shapes(Path(name)), len(facts.classes)
        try:
            refuse_other_count(tensors, count, f"{FLAG} {name}")
        except WeightsMismatch as error:
            raise ConfigError(str(error)) from None
        refuse_other_description(facts.arch, count, facts.image_size, facts.options, tensors, f"{FLAG} {name}")
        said = Preprocessing.from_json(facts.preprocessing, f"{FLAG} {name}") if facts.preprocessing else None
        return cls(name, facts.classes, said, facts.image_size, facts, metadata.get(CHECKSUM, ""))

    def refuse_other(self, classes: Sequence[str]) -> None:
        """Raise ConfigError unless its outputs are these classes, in order."""
        require(
            self.classes is None or list(self.classes) == list(classes),
            f"{FLAG} {self.name}: other classes: the teacher knows {len(self.classes or [])} "
            f"({_some(self.classes or [])}), the data has {len(classes)} ({_some(classes)}); a teacher's outputs have "
            "to be the data's classes, in order",
        )

    def build(self, classes: int, ours: Preprocessing | None, trained: bool = False) -> TeacherNetwork:
        """It without its weights, or `trained` with a library's. Raises ConfigError where that cannot give them."""
        if self.facts is None:
            network = library_network(self.name, FLAG, trained)
            return TeacherNetwork(network, self.preprocessing, ours, self.image_size)
        facts = self.facts
        network = archs.build(facts.arch, classes, image_size=facts.image_size, **facts.options)
        return TeacherNetwork(network, self.preprocessing, ours, facts.image_size)

    def load(self, classes: int, ours: Preprocessing | None) -> TeacherNetwork:
        """It with its weights, in evaluation mode, not to be trained. Raises ConfigError where they do not fit."""
        teacher = self.build(classes, ours, trained=True)
        if self.facts is not None:
            try:
                given = read_weight_file(Path(self.name), f"{FLAG} {self.name}")
                keys = teacher.network.state_dict().keys()
                teacher.network.load_state_dict(our_keys(given, self.facts.arch, keys)[0])
            except RuntimeError as error:
                raise ConfigError(f"{FLAG} {self.name}: {str(error).splitlines()[0]}") from None
        return teacher.eval().requires_grad_(False)

    def builder(self, classes: int, ours: Preprocessing | None) -> partial[TeacherNetwork]:
        """Builds it, for a planner."""
        return partial(self.build, classes, ours)


def digest(values: dict[str, Any]) -> str:
    """A name for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
