"""The order of an epoch that draws each class equally often, however few images it has."""

from __future__ import annotations

import numpy as np

PURPOSE = 2**63
"""In the key of the random numbers, where others have their epoch and purpose (engine.data.sampling)."""


def balanced_order(
    labels: np.ndarray, seed: int, epoch: int, shuffler: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch of as many images, in which classes differ by one image at the most.

    labels    int64 [N], of the images to draw from
    shuffler  the random numbers of this epoch's order
    returns   int64 [N] each: positions into `labels`, and how often that position stood earlier in this epoch

    Each class goes through its own images in random order, and through all of them before one comes again, over epochs
    as well: epoch e goes on where e - 1 stopped, and both are functions of (seed, epoch).
    """
    total = len(labels)
    names, counts = np.unique(labels, return_counts=True)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    share, odd = divmod(total, len(names))
    drawn = []
    for place, images in enumerate(members):
        begin = _until(epoch, place, len(names), share, odd)
        wanted = _until(epoch + 1, place, len(names), share, odd) - begin
        drawn.append(images[_endless(len(images), begin, wanted, seed, int(names[place]))])
    order = shuffler.permutation(np.concatenate(drawn))
    return order, _earlier(order)


def _until(epoch: int, place: int, classes: int, share: int, odd: int) -> int:
    """Images of the class at `place` that epochs before `epoch` draw: in each, `odd` classes in turn have one more."""
    more = epoch * odd
    return epoch * share + more // classes + (place < more % classes)


def _endless(size: int, begin: int, count: int, seed: int, label: int) -> np.ndarray:
    """int64 [count]: members `begin` and on of an endless row of permutations of range(size)."""
    first, last = begin // size, (begin + count - 1) // size
    rows = [
        np.random.Generator(
            np.random.Philox(key=np.array([seed, PURPOSE], dtype=np.uint64), counter=np.array([0, label, turn, 0]))
        ).permutation(size)
        for turn in range(first, last + 1)
    ]
    return np.concatenate(rows)[begin - first * size :][:count]


def _earlier(order: np.ndarray) -> np.ndarray:
    """int64 [N]: how often each value of `order` stands before its place."""
    by_value = np.argsort(order, kind="stable")
    _, begins, counts = np.unique(order[by_value], return_index=True, return_counts=True)
    found = np.empty(len(order), dtype=np.int64)
    found[by_value] = np.arange(len(order)) - np.repeat(begins, counts)
    return found
