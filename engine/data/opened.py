"""A run's data from its config: the source, as the run split it, and its fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.folds import fold_of
from engine.data.sources.found import Wanted
from engine.data.sources.holdout import read_holdout
from engine.data.sources.open import open_source
from engine.data.sources.source import Source

if TYPE_CHECKING:
    from engine.config import DataConfig


def wanted_of(data: DataConfig, run: Path | None = None) -> Wanted:
    """How `data` is to be read; `run` is the folder of the run that goes on or is evaluated. Raises DataError."""
    recorded = None if run is None else read_holdout(run)
    return Wanted(data.val_share, data.split_seed, data.group_by, data.columns, recorded)


def open_data(
    data: DataConfig, *, root: Path | str | None = None, download: bool | None = None, run: Path | None = None
) -> Source:
    """The source that `data` describes.

    root      in place of its own
    download  in place of its own
    run       a run's folder, which says what it held out for validation

    Raises DataError.
    """
    at = data.root if root is None else root
    source = open_source(
        data.name, at, download=data.download if download is None else download, wanted=wanted_of(data, run)
    )
    return fold_of(source, data.folds, data.fold, data.group_by)
