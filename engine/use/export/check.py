"""An exported file beside the network that it was made of, on the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.config import require
from engine.data.bad_images import decode
from engine.data.sources.reading import Unreadable, read
from engine.use.export.graph import Prepare
from engine.use.export.graph_files import open_onnx
from engine.use.pictures import named_pictures
from engine.use.predict import Predictor, probabilities_of, split_of

Runner = Callable[[np.ndarray], np.ndarray]
"""uint8 [N, H, W, 3] -> logits float32 [N, classes]."""

ENOUGH = 0.99
"""Share of pictures with the same likeliest class under which a check has failed."""


@dataclass(frozen=True)
class Agreement:
    """How two sets of answers compare."""

    pictures: int
    unreadable: int
    same: float
    """Share of the pictures with the same likeliest class."""
    probability: float
    """Largest difference of a probability."""
    logit: float
    """Largest difference of a logit."""

    def describe(self) -> str:
        """In one line."""
        left = f", {self.unreadable} unreadable left out" if self.unreadable else ""
        return (
            f"{self.pictures} pictures{left}: the same class in {self.same:.2%}, largest difference of a probability "
            f"{self.probability:.2g}, of a logit {self.logit:.2g}"
        )


def onnx_runner(path: Path) -> Runner:
    """Runs an ONNX file through onnxruntime."""
    session = open_onnx(path)
    return lambda images: session.run(["logits"], {"images": images})[0]


def torch_export_runner(path: Path) -> Runner:
    """Runs a .pt2 through torch."""
    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images))[1].detach().numpy()


def library_runner(model: torch.nn.Module, prepare: Prepare) -> Runner:
    """Runs a library's own model on pictures that are prepared as ours."""
    model.eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(prepare(torch.from_numpy(images))).numpy()

    return run


def check(predictor: Predictor, runner: Runner, folder: str) -> Agreement:
    """Predict the pictures of `folder` both ways. Raises ConfigError where none can be read."""
    paths = named_pictures([folder])
    ours = np.concatenate([answers.logits for answers in predictor.answers(split_of(paths))])
    theirs = np.full_like(ours, np.nan)
    for place, path in enumerate(paths):
        try:
            pixels = np.array(decode(read(path)))  # a copy that may be written to, as torch wants it
        except Unreadable:
            continue
        theirs[place] = runner(pixels[None])[0]
    good = ~(np.isnan(ours).any(axis=1) | np.isnan(theirs).any(axis=1))
    require(bool(good.any()), f"--check {folder}: none of its {len(paths)} pictures can be read")
    ours, theirs = ours[good], theirs[good]
    return Agreement(
        int(good.sum()),
        int((~good).sum()),
        float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        float(np.abs(probabilities_of(ours) - probabilities_of(theirs)).max()),
        float(np.abs(ours - theirs).max()),
    )
