"""Predict the classes of pictures: what `launch/predict.py` does."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from engine.config import command_line, require
from engine.config.flag import Positional, TopLevel
from engine.data.sources.listing import Listing
from engine.data.sources.source import Split
from engine.runs.door import atomic_file
from engine.runs.output import refuse_file
from engine.use.journal import FeatureFile, Journal, part_of, rows_part_of
from engine.use.pictures import passed_over, pictures_of
from engine.use.predict import Predictor
from engine.use.prediction_table import as_row, on_screen, refuse_kind, write_table
from engine.use.weights import read_weights

EXIT_NOTHING_READ = 2
"""As for pictures that cannot be meant."""


@dataclass(frozen=True)
class PredictConfig:
    """Which network, on which pictures, and what is written."""

    images: Annotated[tuple[str, ...], Positional] = ()
    """Files, folders (at any depth), patterns such as 'in/*.jpg', a list (.txt, @FILE, .csv, .tsv, .jsonl, .parquet),
    - for paths on standard input; or tar shards, or a saved dataset, alone."""
    checkpoint: Path | None = None
    """A run folder (its best weights), a checkpoint in one, or a file of weights."""
    arch: str | None = None
    """The network, for weights that do not say: timm's and torchvision's files load too."""
    output: Path | None = None
    """Table to write: .csv, .jsonl or .parquet; none prints it. A job that was killed goes on where it was."""
    embeddings: Path | None = None
    """Also write what the last layer sees, float32 [pictures, features], to this .npy or .safetensors; a picture that
    cannot be read has a row of NaN."""
    top_k: int = 5
    """Classes a picture, the likeliest first."""
    threshold: float = 0.0
    """Leave out classes that are less likely than this."""
    tta: Literal["none", "flip"] = "none"
    """flip takes the mean of the logits of a picture and of its mirror image."""
    batch_size: int = 128
    """Pictures at once."""
    workers: int = 0
    """Decoding threads; 0 is one a core, at most 8."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], TopLevel] = "auto"
    """Compute dtype; auto as in training."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"--batch-size must be at least 1 picture, not {self.batch_size}")
        require(self.top_k >= 1, f"--top-k must be at least 1, not {self.top_k}")
        require(0 <= self.threshold <= 1, f"--threshold must be from 0 to 1, not {self.threshold}")
        require(self.workers >= 0, f"--workers must be 0 (one a core) or more, not {self.workers}")
        ending = self.embeddings.suffix if self.embeddings else ".npy"
        require(ending in (".npy", ".safetensors"), f"--embeddings ends in .npy or .safetensors, not {ending!r}")


def parse(arguments: list[str] | None = None) -> PredictConfig:
    """The prediction that is asked for. Raises ConfigError as `command_line`."""
    return command_line(PredictConfig, arguments, "Predict the classes of pictures by trained weights.")


def run_prediction(config: PredictConfig) -> int:
    """Predict, print or write the table; returns the exit code: 2 where no picture could be read.

    Raises ConfigError and DataError with nothing written but the part file of a job that can go on.
    """
    require(config.checkpoint is not None, "--checkpoint is needed: a run folder or a file of weights")
    assert config.checkpoint is not None
    refuse_outputs(config)
    met: list[Listing] = []
    pictures = pictures_of(config.images, met=met)
    paths = list(pictures.paths or ())
    weights = read_weights(config.checkpoint, config.arch)
    weights.refuse_batch(min(config.batch_size, len(pictures)))
    predictor = Predictor(weights, config.batch_size, config.precision, config.workers)
    if weights.preprocessing is None:
        print(f"{weights.path} does not say which pixels it expects; assumed: {weights.expected().describe()}")
    top_k = min(config.top_k, len(predictor.classes))
    anchor = config.output or config.embeddings
    beside = (rows_part_of(config.embeddings),) if config.embeddings else ()
    job = job_of(config, paths, weights.digest())
    journal = Journal(anchor, job, config.batch_size, beside) if anchor else None
    rows: list[dict[str, Any]] = []
    with journal or nullcontext():
        if journal and journal.rows:
            print(f"going on after {journal.rows} of {len(paths)} pictures", flush=True)
        features = FeatureFile(config.embeddings, len(paths)) if config.embeddings else None
        for batch in _batches(config, predictor, pictures, journal, features):
            if not config.output:
                rows += batch
        if journal and config.output:
            with atomic_file(config.output) as temporary:
                write_table(temporary, config.output.suffix, journal.read(), top_k)
        elif journal:
            rows = list(journal.read())
        if features:
            features.finish(paths)
        bad = sum(row["reason"] is not None for row in (journal.read() if journal else rows))
        if not config.output:
            print(on_screen(rows))
        if journal:
            journal.remove()
    for written in (config.output, config.embeddings):
        if written:
            print(f"written to {written}")
    counted = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    print(f"{counted}, {bad} of them unreadable" if bad else counted)
    if told := passed_over(met):
        print(told)
    if bad < len(paths):
        return 0
    first = next(iter(rows), None)
    why = f": {first['path']}: {first['reason']}" if first else ", as the table's last column says"
    print(f"error: no picture could be read{why}", file=sys.stderr, flush=True)
    return EXIT_NOTHING_READ


def refuse_outputs(config: PredictConfig) -> None:
    """Raise ConfigError for an output that is there already, or cannot be."""
    for flag, path in (("--output", config.output), ("--embeddings", config.embeddings)):
        if path is None:
            continue
        if not os.path.lexists(part_of(config.output or path)):  # a job that goes on
            refuse_file(path, flag)
    if config.output:
        refuse_kind(config.output)


def job_of(config: PredictConfig, paths: list[str], weights: str) -> dict[str, Any]:
    """What a job's rows depend on: two jobs of which all of this is equal have the same rows."""
    named = hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()
    settings = {name: getattr(config, name) for name in ("batch_size", "precision", "top_k", "threshold", "tta")}
    embeddings = str(config.embeddings) if config.embeddings else None
    return {"weights": weights, "pictures": [len(paths), named], **settings, "embeddings": embeddings}


def _batches(
    config: PredictConfig,
    predictor: Predictor,
    split: Split,
    journal: Journal | None,
    features: FeatureFile | None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each batch that is left, written to the journal; a bar shows how far it is."""
    from tqdm import tqdm

    assert split.paths is not None
    done = journal.rows if journal else 0
    if done >= len(split):
        return
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(split), initial=done, unit="img", disable=quiet, leave=False, dynamic_ncols=True) as bar:
        start = done // config.batch_size
        for answers in predictor.answers(split, tta=config.tta, features=features is not None, start=start):
            found = predictor.in_words(answers, split.paths[done:], config.top_k, config.threshold)
            rows = [as_row(prediction) for prediction in found]
            if features:
                assert answers.features is not None
                features.put(done, answers.features)
            if journal:
                journal.add(rows)
            done += len(rows)
            bar.update(len(rows))
            yield rows
