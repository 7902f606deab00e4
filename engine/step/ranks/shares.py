"""How many images of a global batch each rank has: shares of consecutive images that differ by one at the most."""

from __future__ import annotations

from engine.config import AugmentConfig, require


def parts(count: int, places: int) -> list[int]:
    """`count` in so many parts as even as can be, the larger ones first, as `numpy.array_split` and torch's cut."""
    size, larger = divmod(count, places)
    return [size + (place < larger) for place in range(places)]


def largest_share(batch_size: int, ranks: int) -> int:
    """Images of the first rank: no other one has more. Memory is planned for it on all."""
    return -(-batch_size // ranks)


def refuse_few(batch_size: int, ranks: int) -> None:
    """Raise ConfigError for a batch that leaves a rank without an image in every step."""
    require(
        batch_size >= ranks,
        f"--batch-size {batch_size} is less than an image for each of {ranks} ranks: use {ranks} or more, or "
        f"--num_processes {batch_size}",
    )


def refuse_parted_pairs(augment: AugmentConfig, batch_size: int, ranks: int) -> None:
    """Raise ConfigError where images that are mixed would be on two ranks: neighbours are mixed, within a share."""
    used = augment.resolved
    require(
        batch_size % ranks == 0 or not (used["mixup"] or used["cutmix"]),
        f"--augment.mixup and --augment.cutmix mix neighbours of a rank's share, and --batch-size {batch_size} over "
        f"{ranks} ranks gives shares that part some of them: use {batch_size // ranks * ranks} or "
        f"{largest_share(batch_size, ranks) * ranks}, or no mixing",
    )
