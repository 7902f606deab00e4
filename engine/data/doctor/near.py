"""Near duplicates: the same picture compressed anew, resized, cropped a little or without its colours.

Two steps. A perceptual hash proposes: the 63 lowest frequencies of a 32×32 grey copy (as pHash's, but not cut down to
bits), compared by their cosine, of which each image's NEIGHBOURS nearest are taken. Then the pair is aligned, stretch
and shift by Gauss-Newton (Lucas & Kanade 1981), and what is left has to correlate by `threshold_of`: a crop moves
every frequency, but it lies on the other picture exactly. Measured by `python -m engine.bench.doctor_check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn  # comes with scikit-learn
from torch import Tensor

NEIGHBOURS = 6
"""Images beside which each one is laid."""
PROPOSED = 0.6
"""Least cosine of a pair that is looked at."""
FINE, COARSE = 32, 16
"""Pixels a side at which pairs are compared and first aligned."""
PROMISING = 10.0
"""How much farther than the threshold a pair may be after the coarse alignment, to be aligned further."""
HOPELESS = 0.6
"""Correlation after the coarse alignment below which a pair is not tried the other way round."""
LEAST, MOST = 0.985, 0.998
"""Bounds of the correlation from which on a pair is one picture."""
CROWDED = 20.0
"""How much nearer than its set's usual neighbours a pair has to be."""
FEW = 30
"""Pairs below which a set says nothing about its usual neighbours."""
MOST_STRETCH = 0.35
OVERLAP = 0.6
"""Least share of a picture that lies on the other one."""
BATCH = 128
SAMPLE = 512
"""Pairs from which a set's usual neighbours are judged."""
ALL_PAIRS = 20_000
"""Images up to which all pairs are compared; beyond, those that share a cell."""
PROBES = 8
"""Cells in which an image looks for its neighbours, of those that it is nearest to."""


def near_duplicates(small: np.ndarray, threads: int = 1) -> list[tuple[int, int, float]]:
    """Pairs of one picture, as (first, second, correlation) with first < second.

    small    uint8 [N, 64, 64], the images as grey squares (engine.data.doctor.look)
    threads  that align, each with an image pair's few pixels to itself

    Time grows with N² up to ALL_PAIRS, from there with N^1.5.
    """
    if len(small) < 2:
        return []
    frequencies = hashes(small)
    cosine, other = neighbours(frequencies)
    rows = np.arange(len(small))[:, None].repeat(cosine.shape[1], axis=1)
    rank = np.arange(cosine.shape[1])[None].repeat(len(small), axis=0)
    taken = (cosine > PROPOSED) & (other >= 0)
    pairs = np.sort(np.stack([rows[taken], other[taken]], axis=1), axis=1)
    pairs, places = np.unique(pairs, axis=0, return_index=True)
    if not len(pairs):
        return []
    usual = pairs[rank[taken][places] > 0]
    drawn = np.random.default_rng(0).permutation(len(usual))[:SAMPLE]
    with _one_thread_each(threads) as pool:
        least = threshold_of(correlations(small, usual[drawn], LEAST, pool))
        score = correlations(small, pairs, least, pool)
    return [(int(a), int(b), float(one)) for (a, b), one in zip(pairs, score, strict=True) if one >= least]


def threshold_of(usual: np.ndarray) -> float:
    """The correlation from which on a pair is one picture, by how alike other neighbours in the set are.

    usual  correlations of images with neighbours that are not their nearest

    Handwritten ones are alike by 0.98 and not the same; photographs are alike by 0.7.
    """
    if len(usual) < FEW:
        return LEAST
    return float(np.clip(1 - (1 - np.median(usual)) / CROWDED, LEAST, MOST))


def hashes(small: np.ndarray) -> np.ndarray:
    """float32 [N, 63], of length 1: the lowest frequencies but the mean."""
    found = np.empty((len(small), 63), dtype=np.float32)
    for begin in range(0, len(small), 1024):
        part = small[begin : begin + 1024].reshape(-1, FINE, 2, FINE, 2).mean(axis=(2, 4), dtype=np.float32)
        low = dctn(part, norm="ortho", axes=(1, 2))[:, :8, :8].reshape(len(part), -1)[:, 1:]
        found[begin : begin + 1024] = low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)
    return found


def neighbours(frequencies: np.ndarray, all_pairs: int = ALL_PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """The nearest images of each by the cosine of their hashes, the nearest first.

    returns  float32 and int64 [N, NEIGHBOURS or N - 1]; -1 where there is none
    """
    values = torch.from_numpy(frequencies)
    count = min(NEIGHBOURS, len(values) - 1)
    everything = torch.arange(len(values))
    groups = [(everything, everything)] if len(values) <= all_pairs else _cells(values)
    best = torch.full((len(values), count), -2.0)
    where = torch.full((len(values), count), -1, dtype=torch.long)
    for asking, members in groups:
        there = values[members]
        for rows in asking.split(1024):
            cosine = values[rows] @ there.T
            cosine[rows[:, None] == members[None]] = -2.0
            top, place = cosine.topk(min(count, cosine.shape[1]), dim=1)
            known, at = torch.cat([best[rows], top], dim=1), torch.cat([where[rows], members[place]], dim=1)
            best[rows], order = known.topk(count, dim=1)
            where[rows] = at.gather(1, order)
    where[best < -1] = -1
    return best.numpy(), where.numpy()


def _cells(values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(images that look, images that are there) of each cell: the surroundings of an image drawn at random."""
    count = max(1, round((PROBES * len(values)) ** 0.5))
    drawn = torch.from_numpy(np.random.default_rng(0).choice(len(values), count, replace=False))
    probes = torch.cat(
        [(part @ values[drawn].T).topk(min(PROBES, count), dim=1).indices for part in values.split(4096)]
    )
    order = probes[:, 0].argsort(stable=True)
    members = order.split(torch.bincount(probes[:, 0], minlength=count).tolist())
    flat = probes.flatten()
    asking = (flat.argsort(stable=True) // probes.shape[1]).split(torch.bincount(flat, minlength=count).tolist())
    return [(ask, there) for ask, there in zip(asking, members, strict=True) if len(there)]


@contextmanager
def _one_thread_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose tasks compute in one thread: for so few pixels torch's own threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def correlations(small: np.ndarray, pairs: np.ndarray, least: float, pool: ThreadPoolExecutor) -> np.ndarray:
    """float32 [P], how well each pair of images correlates once one is laid on the other; the better way round.

    pairs  int64 [P, 2]
    least  what is sought: pairs that will not come near it are judged coarsely
    """
    found = np.zeros(len(pairs), dtype=np.float32)
    for first, second in ((0, 1), (1, 0)):
        left = np.flatnonzero((found < least) & ((found > HOPELESS) | (first == 0)))
        parts = [pairs[left[begin : begin + BATCH]] for begin in range(0, len(left), BATCH)]
        scores = pool.map(lambda part: _laid_on(small[part[:, first]], small[part[:, second]], least), parts)  # noqa: B023
        for begin, score in zip(range(0, len(left), BATCH), scores, strict=True):
            place = left[begin : begin + BATCH]
            found[place] = np.maximum(found[place], score)
    return found


def _laid_on(first: np.ndarray, second: np.ndarray, least: float) -> np.ndarray:
    """float32 [P], correlation of `second` with the window of `first` that fits it best; both uint8 [P, 64, 64]."""
    one, other = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    moves = _aligned(one, other, torch.zeros(len(one), 4), COARSE)
    score = _correlation(one, other, moves, COARSE)
    promising = score > 1 - PROMISING * (1 - least)
    if promising.any():
        one, other = one[promising], other[promising]
        score[promising] = _correlation(one, other, _aligned(one, other, moves[promising], FINE), FINE)
    return score.numpy()


def _aligned(one: Tensor, other: Tensor, moves: Tensor, side: int, steps: int = 4) -> Tensor:
    """[P, 4] stretch and shift in x, stretch and shift in y, after some Gauss-Newton steps at `side` pixels."""
    one, other = _pooled(one, side), _pooled(other, side)
    columns = _centres(side).expand(side, side)
    rows = columns.T
    for _ in range(steps):
        moved, inside = _moved(one, moves)
        moved, wanted = _standard(moved, inside), _standard(other, inside)
        down, right = (slope * inside * side / 2 for slope in torch.gradient(moved, dim=(1, 2)))
        slopes = torch.stack([right * columns, right, down * rows, down], dim=-1).flatten(1, 2)
        normal = slopes.mT @ slopes
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1.0)
        normal = normal + torch.eye(4) * damping[:, None, None]
        step = torch.linalg.solve(normal, slopes.mT @ ((wanted - moved) * inside).flatten(1)[..., None])[..., 0]
        moves = (moves + step.clamp(-0.15, 0.15)).clamp(-MOST_STRETCH, MOST_STRETCH)
    return moves


def _correlation(one: Tensor, other: Tensor, moves: Tensor, side: int) -> Tensor:
    """Of the parts that lie on each other, at `side` pixels; moved at full size, so that both are as sharp."""
    moved, inside = _moved(one, moves)
    inside = (_pooled(inside, side) > 0.99).float()
    product = _standard(_pooled(moved, side), inside) * _standard(_pooled(other, side), inside)
    score = product.sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
    return score * (inside.mean(dim=(1, 2)) > OVERLAP)


def _moved(images: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Images [P, S, S] stretched and shifted, and 1 where they lie inside."""
    at = _centres(images.shape[-1])
    x = at[None, None] * (1 + moves[:, 0, None, None]) + moves[:, 1, None, None]
    y = at[None, :, None] * (1 + moves[:, 2, None, None]) + moves[:, 3, None, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    moved = F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return moved, (grid.abs() <= 1).all(dim=-1).float()


def _standard(images: Tensor, inside: Tensor) -> Tensor:
    """Mean 0 and variance 1 over what is inside, 0 elsewhere; a flat image is 0."""
    count = inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    centred = (images - (images * inside).sum(dim=(1, 2), keepdim=True) / count) * inside
    deviation = (centred.square().sum(dim=(1, 2), keepdim=True) / count).sqrt()
    return torch.where(deviation > 1.0, centred / deviation.clamp(min=1.0), 0.0)


def _pooled(images: Tensor, side: int) -> Tensor:
    factor = images.shape[-1] // side
    return images if factor == 1 else F.avg_pool2d(images[:, None], factor)[:, 0]


def _centres(side: int) -> Tensor:
    """Middles of pixels from -1 to 1."""
    return (torch.arange(side) + 0.5) / side * 2 - 1
