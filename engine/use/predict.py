"""Classes of pictures by a trained network, in Python: `load("runs/x").predict(["a.jpg", "b.jpg"])`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from engine.config import ConfigError, DataConfig, require
from engine.data.sources.source import Source, Split
from engine.step.finetune import last_layer
from engine.use.weights import Weights, for_use, read_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

Flip = Literal["none", "flip"]
ACCEPTED = (
    "predict takes paths, or uint8 arrays [H, W, 3] (RGB) or [H, W] (grey), as np.asarray makes of a PIL image; one or "
    "a list of them"
)
NO_NUMBERS = "the network makes no numbers of it: do the weights hold NaN?"


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture, the likeliest class first."""

    path: str | None
    """None for a picture that was given as an array."""
    classes: list[str]
    probabilities: list[float]
    reason: str | None = None
    """Why there are no classes: the file cannot be read as a picture, or the network makes no numbers of it."""


@dataclass(frozen=True)
class Answers:
    """A batch of pictures, in order."""

    logits: np.ndarray
    """float32 [N, classes]; not a number where a picture cannot be read."""
    features: np.ndarray | None
    """float32 [N, F], what the last layer sees, averaged over the map; None unless it was asked for."""
    reasons: list[str | None]
    """Why a picture cannot be read; None where it was."""


def load(
    checkpoint: str | Path,
    *,
    arch: str | None = None,
    batch_size: int = 128,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> Predictor:
    """A trained network ready to predict.

    checkpoint  a run folder (its best weights), a checkpoint in one, or a file of weights
    arch        the network, for a file that does not say
    batch_size  pictures at once
    precision   compute dtype; auto as in training

    Raises ConfigError where there are no such weights.
    """
    return Predictor(read_weights(Path(checkpoint), arch), batch_size, precision)


class Predictor:
    """A network and the pixels that it expects; on the GPU where there is one."""

    def __init__(self, weights: Weights, batch_size: int = 128, precision: str = "auto", workers: int = 0) -> None:
        import torch

        from engine.step.plan import use_cuda

        whole = isinstance(batch_size, int) and batch_size >= 1
        require(whole, f"--batch-size must be a number of pictures from 1 on, not {batch_size!r}")
        self.weights, self.batch_size = weights, batch_size
        self.classes = weights.class_names()
        self.device = torch.device("cuda" if use_cuda() else "cpu")
        self.model, self._forward = for_use(weights, self.device, precision)
        self.preprocessing = weights.expected()
        self._data = self.preprocessing.into(DataConfig(workers=workers))

    def predict(
        self,
        pictures: str | Path | np.ndarray | Collection[str | Path | np.ndarray],
        *,
        top_k: int = 5,
        threshold: float = 0.0,
        tta: Flip = "none",
    ) -> list[Prediction]:
        """What the network says of each picture, in their order.

        pictures   paths, or uint8 arrays [H, W, 3] (RGB) or [H, W] (grey) of any sizes; one alone is a list of one
        top_k      classes a picture, the likeliest first
        threshold  leave out classes that are less likely than this
        tta        "flip" takes the mean of the logits of a picture and of its mirror image

        A file that cannot be read has no classes, and a reason; so has one of which the network makes no numbers.
        Raises TypeError for what are neither paths nor arrays; ConfigError, a ValueError, for no pictures, for an empty
        path, for arrays of another form, for paths and arrays in one list, and for settings that cannot be meant.
        """
        require(top_k >= 1, f"top_k must be at least 1 class, not {top_k}")
        require(0 <= threshold <= 1, f"threshold must be from 0 to 1, not {threshold}")
        require(tta in get_args(Flip), f"tta must be none or flip, not {tta!r}")
        if isinstance(pictures, str | os.PathLike | np.ndarray):
            pictures = [pictures]
        split = split_of(pictures)
        found: list[Prediction] = []
        for answers in self.answers(split, tta=tta):
            found += self.in_words(answers, split.paths and split.paths[len(found) :], top_k, threshold)
        return found

    def in_words(
        self, answers: Answers, paths: Sequence[str] | None, top_k: int, threshold: float = 0.0
    ) -> list[Prediction]:
        """A batch's answers with the classes by name; `paths` of its pictures from its first on."""
        found = []
        for place, (row, reason) in enumerate(zip(probabilities_of(answers.logits), answers.reasons, strict=True)):
            path = paths[place] if paths else None
            if not reason and np.isnan(row).any():
                reason = NO_NUMBERS
            best = [] if reason else np.argsort(-row, kind="stable")[:top_k].tolist()
            best = [label for label in best if row[label] >= threshold]
            names = [self.classes[label] for label in best]
            found.append(Prediction(path, names, [float(row[label]) for label in best], reason))
        return found

    def answers(self, split: Split, *, tta: Flip = "none", features: bool = False, start: int = 0) -> Iterator[Answers]:
        """The logits of a split, batch by batch, through the graph of the evaluation.

        start  batch to begin with, counted from 0: it is made of the same pictures as when all are asked for
        """
        import torch

        from engine.data.backend import make_loader

        self.weights.refuse_batch(min(self.batch_size, len(split)))
        source = Source(
            "pictures", self.classes, split, split, self.preprocessing.mean, self.preprocessing.std, False, (1, 1), 1.0
        )
        loader = make_loader(source, "val", config=self._data, global_batch=self.batch_size, device=self.device)
        try:
            with torch.inference_mode(), seen_by_last_layer(self.model, features) as seen:
                for batch in loader.epoch(0, start):
                    logits = self._flipped(batch.images) if tta == "flip" else self._forward(batch.images)
                    pooled = mean_features(seen, tta == "flip") if features else None
                    readable = batch.weights[: batch.count].cpu().numpy() > 0
                    reasons = {bad.path: bad.reason for bad in loader.bad_images}
                    first = start * self.batch_size
                    yield Answers(
                        _where(readable, logits[: batch.count]),
                        None if pooled is None else _where(readable, pooled[: batch.count]),
                        [
                            None if good else reasons[split.path(first + place)]
                            for place, good in enumerate(readable.tolist())
                        ],
                    )
                    start += 1
        finally:
            loader.close()

    def _flipped(self, images: torch.Tensor) -> torch.Tensor:
        """Mean of the logits of images and of their mirror images."""
        return (self._forward(images).float() + self._forward(images.flip(-1)).float()) / 2


def split_of(pictures: Collection[str | Path | np.ndarray]) -> Split:
    """Pictures without labels. Raises TypeError and ConfigError as `Predictor.predict`."""
    if not isinstance(pictures, Collection) or isinstance(pictures, bytes | Mapping | Set):
        raise TypeError(f"pictures are of type {type(pictures).__name__}: {ACCEPTED}")
    pictures = list(pictures)
    require(len(pictures) > 0, f"there are no pictures to predict: {ACCEPTED}")
    for place, picture in enumerate(pictures):
        if not isinstance(picture, str | os.PathLike | np.ndarray):
            raise TypeError(f"picture {place} is of type {type(picture).__name__}: {ACCEPTED}")
        require(isinstance(picture, np.ndarray) or bool(str(picture)), f"picture {place} is an empty path: {ACCEPTED}")
    labels = np.zeros(len(pictures), dtype=np.int64)
    kinds = {isinstance(picture, np.ndarray) for picture in pictures}
    require(len(kinds) == 1, f"paths and arrays cannot be mixed in one call: {ACCEPTED}")
    if kinds == {False}:
        return Split(labels, paths=[str(picture) for picture in pictures])
    arrays = np.empty(len(pictures), dtype=object)  # of any sizes
    for place, picture in enumerate(pictures):
        assert isinstance(picture, np.ndarray)
        shaped = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not shaped or not picture.size:
            raise ConfigError(f"picture {place} is an array of {picture.dtype} {list(picture.shape)}: {ACCEPTED}")
        arrays[place] = np.ascontiguousarray(picture)
    return Split(labels, arrays=arrays)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=-1, keepdims=True)


@contextmanager
def seen_by_last_layer(model: nn.Module, wanted: bool) -> Iterator[list[torch.Tensor]]:
    """Inside, each forward pass adds what the model's last layer is given to the list."""
    seen: list[torch.Tensor] = []
    if not wanted:
        yield seen
        return
    keep: Callable[..., None] = lambda module, given: seen.append(given[0].detach().float())  # noqa: E731
    hook = last_layer(model).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def mean_features(seen: list[torch.Tensor], flipped: bool) -> torch.Tensor:
    """[N, F] of the last passes, averaged over maps [N, F, H, W] and over mirror images; empties the list."""
    passes = seen[-2:] if flipped else seen[-1:]
    seen.clear()
    pooled = [one.mean(dim=(2, 3)) if one.ndim == 4 else one for one in passes]
    return sum(pooled[1:], pooled[0]) / len(pooled)


def _where(readable: np.ndarray, values: torch.Tensor) -> np.ndarray:
    rows = values.float().cpu().numpy().copy()
    rows[~readable] = np.nan
    return rows
