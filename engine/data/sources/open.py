"""The one function that opens any source by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.data.sources.found import Wanted, source_from
from engine.data.sources.source import DataError, Source
from engine.runs.cache import cache_folder


def open_source(
    name: str,
    root: Path | str | None = None,
    *,
    download: bool = True,
    cache: Path | str | None = None,
    wanted: Wanted | None = None,
) -> Source:
    """Open `digits`, `mnist`, `cifar10` or `folder`; `auto` is folder where a root is given and digits where none is.

    root      the data: any layout for folder (engine.data.sources.layouts), torchvision's for mnist and cifar10 (none:
              the cache)
    download  let mnist and cifar10 be fetched where they are missing
    cache     folder for what is made or fetched once; none is $HCR_CACHE, or ~/.cache/hcr
    wanted    how a layout is read, and what is held out of it

    Raises DataError for an unknown name, and for data that is missing, incomplete or malformed.
    """
    if name == "auto":
        name = "digits" if root is None else "folder"
    if name not in _OPENERS:
        raise DataError(f"there is no source {name!r}; there are {', '.join(_OPENERS)}")
    at = None if root is None else Path(root).expanduser()
    return _OPENERS[name](at, download, cache_folder(cache), wanted or Wanted())


def _digits(root: Path | None, download: bool, cache: Path, wanted: Wanted) -> Source:
    from engine.data.sources.digits import open_digits

    if root is not None:
        raise DataError(f"digits come with scikit-learn and take no root, but {root} was given; name folder to use it")
    return open_digits(cache)


def _mnist(root: Path | None, download: bool, cache: Path, wanted: Wanted) -> Source:
    from engine.data.sources.mnist import open_mnist

    return open_mnist(root or cache, download=download)


def _cifar10(root: Path | None, download: bool, cache: Path, wanted: Wanted) -> Source:
    from engine.data.sources.cifar10 import open_cifar10

    return open_cifar10(root or cache, download=download)


def _folder(root: Path | None, download: bool, cache: Path, wanted: Wanted) -> Source:
    from engine.data.sources.layouts.which import read_layout

    if root is None:
        raise DataError("folder needs --data.root: a folder of images, a list of them, or shards")
    return source_from(read_layout(root, wanted, cache), wanted)


_OPENERS: dict[str, Callable[[Path | None, bool, Path, Wanted], Source]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "folder": _folder,
}
