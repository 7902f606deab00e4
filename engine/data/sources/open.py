"""The one function that opens any source by its name."""

from collections.abc import Callable
from pathlib import Path

from engine.data.sources.source import DataError, Source
from engine.runs.cache import cache_folder


def open_source(
    name: str, root: Path | str | None = None, *, download: bool = True, cache: Path | str | None = None
) -> Source:
    """Open `digits`, `mnist`, `cifar10` or `folder`; `auto` is folder where a root is given and digits where none is.

    root      the data: train/ and val/ for folder, torchvision's layout for mnist and cifar10 (none: the cache)
    download  let mnist and cifar10 be fetched where they are missing
    cache     folder for what is made or fetched once; none is $HCR_CACHE, or ~/.cache/hcr

    Raises DataError for an unknown name, and for data that is missing, incomplete or malformed.
    """
    if name == "auto":
        name = "digits" if root is None else "folder"
    if name not in _OPENERS:
        raise DataError(f"there is no source {name!r}; there are {', '.join(_OPENERS)}")
    return _OPENERS[name](None if root is None else Path(root).expanduser(), download, cache_folder(cache))


def _digits(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.sources.digits import open_digits

    if root is not None:
        raise DataError(f"digits come with scikit-learn and take no root, but {root} was given; name folder to use it")
    return open_digits(cache)


def _mnist(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.sources.mnist import open_mnist

    return open_mnist(root or cache, download=download)


def _cifar10(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.sources.cifar10 import open_cifar10

    return open_cifar10(root or cache, download=download)


def _folder(root: Path | None, download: bool, cache: Path) -> Source:
    from engine.data.sources.folder import open_folder

    if root is None:
        raise DataError("folder needs --data.root: a folder with train/ and val/, each with one folder a class")
    return open_folder(root)


_OPENERS: dict[str, Callable[[Path | None, bool, Path], Source]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "folder": _folder,
}
