"""Which images make which batch, as a function of (seed, epoch, step) and nothing else.

There is no state to save: a run resumes at any step, with any number of ranks or threads, by asking for that step.
The same holds for augmentation: an image's random numbers in an epoch depend on (seed, epoch, image) only.
"""

from dataclasses import dataclass

import numpy as np

from engine.data.class_order import balanced_order

# Each purpose has its own stream of random numbers under one seed.
ORDER, AUGMENT, SUBSET, CHANGES = range(4)


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch."""

    indices: np.ndarray
    """int64 [m], images of the split."""
    weights: np.ndarray
    """float32 [m], 1 for an image and 0 for a repeat that only fills the shape."""
    count: int
    """Images of weight 1 here."""
    global_count: int
    """Images of weight 1 over all ranks."""
    repeats: np.ndarray | None = None
    """int64 [m], how often each image stood earlier in this epoch; None where every image stands once."""


@dataclass(frozen=True)
class Where:
    """Which images a rank's batch shows, and where in the run."""

    epoch: int
    step: int
    indices: np.ndarray
    """int64 [m], of the split."""
    count: int
    """Images that are no fillers."""


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """The random numbers of one purpose in one epoch (Philox: Salmon et al., SC 2011; the same on every machine)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch * 4 + purpose], dtype=np.uint64)))


def draws(n: int, seed: int, epoch: int) -> np.ndarray:
    """float32 [n, 5] uniform in [0, 1): every image's crop area, aspect, y, x and flip in this epoch."""
    return generator(seed, epoch, AUGMENT).random((n, 5), dtype=np.float32)


def numbers_of(indices: np.ndarray, count: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """float64 [m, count] uniform in [0, 1): for each image, or other thing with a number, its own in this epoch.

    stream  numbers of another one have nothing to do with these

    Philox counts: each number has 2^64 blocks of the counter to itself, so nothing is drawn for the images between.
    """
    key = np.array([seed, epoch * 4 + CHANGES], dtype=np.uint64)
    found = np.empty((len(indices), count))
    for row, index in enumerate(indices.tolist()):
        counter = np.array([0, index % 2**64, stream, 0], dtype=np.uint64)
        found[row] = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)
    return found


def subset(n: int, limit: int, seed: int) -> np.ndarray:
    """Sorted int64 indices of `limit` of n images, a seeded choice; all of them for limit 0 or limit >= n."""
    if limit <= 0 or limit >= n:
        return np.arange(n)
    return np.sort(generator(seed, 0, SUBSET).permutation(n)[:limit])


def repeated_order(order: np.ndarray, global_batch: int, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335): each image `times` in its global batch.

    order    int64 [n], all images at random, of which the first n / times are shown
    returns  int64 [n] each: which image stands where, and how often it stood before. Within a batch all of its images
             stand once, then all of them again: neighbours, which are mixed, are different images where there are two
    """
    places, turns, shown = [], [], 0
    for begin in range(0, len(order), global_batch):
        size = min(global_batch, len(order) - begin)
        images = -(-size // times)
        places.append(np.resize(np.arange(shown, shown + images), size))
        turns.append(np.arange(size) // images)
        shown += images
    return order[np.concatenate(places)], np.concatenate(turns)


class Sampler:
    """Cuts an epoch of n images into global batches, and each of those into one contiguous share a rank.

    n              images in an epoch
    global_batch   images a step over all ranks, one for each at the least; shares differ by one at the most
    seed, shuffle  the order is a permutation by (seed, epoch), or 0..n-1 unshuffled
    minimum_share  a shorter share, in the last batch, is filled with repeats at weight 0 (BatchNorm needs 2)
    balanced       int64 [n] labels: an epoch draws n images, each class equally often (engine.data.balance)
    repeated       an epoch shows n / repeated of the images, so often each, all within one global batch

    Every rank has the same number of steps, and every image has weight 1 exactly once an epoch over the ranks, unless
    classes are balanced or images are repeated.
    Raises ValueError for no images, and for a global batch of fewer images than ranks.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        rank: int,
        world: int,
        seed: int,
        shuffle: bool,
        minimum_share: int = 1,
        balanced: np.ndarray | None = None,
        repeated: int = 1,
    ) -> None:
        if n < 1:
            raise ValueError("there are no images to sample from")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} ranks")
        if global_batch < world:
            raise ValueError(f"a batch of {global_batch} images leaves some of {world} ranks without any")
        self.n, self.global_batch, self.rank, self.world = n, global_batch, rank, world
        self.seed, self.shuffle, self.minimum_share = seed, shuffle, max(1, minimum_share)
        self.balanced, self.repeated = balanced, repeated if shuffle else 1
        self._order: tuple[int, np.ndarray, np.ndarray | None] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that cover n images once: ceil(n / global_batch), the same on every rank."""
        return -(-self.n // self.global_batch)

    @property
    def largest_share(self) -> int:
        """Images in the largest share of any rank."""
        return max(-(-self.global_batch // self.world), self.minimum_share)

    def share(self, epoch: int, step: int) -> Share:
        """This rank's part of batch `step` of `epoch`; raises IndexError for a step that the epoch has not."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} is not in [0, {self.steps_per_epoch})")
        order, repeats = self._ordered(epoch if self.shuffle else 0)
        begin = step * self.global_batch
        batch = np.arange(begin, min(begin + self.global_batch, self.n))
        mine = np.array_split(batch, self.world)[self.rank]
        weights = np.ones(len(mine), dtype=np.float32)
        missing = self.minimum_share - len(mine)
        if missing > 0:
            repeated = np.resize(mine if len(mine) else batch, missing)
            mine = np.concatenate([mine, repeated])
            weights = np.concatenate([weights, np.zeros(missing, dtype=np.float32)])
        again = None if repeats is None else repeats[mine]
        return Share(order[mine], weights, count=int(weights.sum()), global_count=len(batch), repeats=again)

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """What stands where in an epoch, and how often it stood before."""
        if self._order is None or self._order[0] != epoch:
            repeats = None
            if not self.shuffle:
                order = np.arange(self.n)
            elif self.balanced is None:
                order = generator(self.seed, epoch, ORDER).permutation(self.n)
                if self.repeated > 1:
                    order, repeats = repeated_order(order, self.global_batch, self.repeated)
            else:
                order, repeats = balanced_order(self.balanced, self.seed, epoch, generator(self.seed, epoch, ORDER))
            self._order = epoch, order, repeats
        return self._order[1], self._order[2]
