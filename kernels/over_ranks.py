"""Small vectors that ranks exchange within the forward and the backward pass: BatchNorm's statistics over all images.

Custom operators, which torch.compile leaves in its graph as they are. A rank that breaks off in mid-pass is waited for
by the others: `Followed` knows which exchanges are left, and takes part in them with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before any group is made: it keeps the one it finds alive
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

_followed: dict[str, Followed] = {}
"""By the group's name."""


class Exchange(NamedTuple):
    """One vector: gathered, or else added up."""

    gathered: bool
    vector: Tensor
    """On the meta device: length and dtype."""
    device: torch.device


def group_name(group: dist.ProcessGroup | None = None) -> str:
    """What the operators know a group by; None is the group of all ranks."""
    return (group or dist.group.WORLD).group_name  # type: ignore[union-attr]


@torch.library.custom_op("hcr::gather_over_ranks", mutates_args=())
def gather_over_ranks(own: Tensor, group: str) -> Tensor:
    """Every rank's vector [n], in the order of ranks: [R, n]. `group` as `group_name` gives it."""
    return _exchange(own, group, gathered=True)


@gather_over_ranks.register_fake
def _(own: Tensor, group: str) -> Tensor:
    return own.new_empty((dist.get_world_size(_resolve_process_group(group)), len(own)))


@torch.library.custom_op("hcr::sum_over_ranks", mutates_args=())
def sum_over_ranks(own: Tensor, group: str) -> Tensor:
    """The sum [n] of every rank's vector [n]. `group` as `group_name` gives it."""
    return _exchange(own, group, gathered=False)


@sum_over_ranks.register_fake
def _(own: Tensor, group: str) -> Tensor:
    return torch.empty_like(own)


def _exchange(own: Tensor, name: str, gathered: bool) -> Tensor:
    """Exchange a vector, or in a rehearsal take it for every rank's; notes or counts it where the group is followed."""
    followed = _followed.get(name)
    if followed is not None and followed.apart(own, gathered):
        return own.repeat(dist.get_world_size(followed.group), 1) if gathered else own.clone()
    result, _ = _begin(own, _resolve_process_group(name), gathered, wait=True)
    if followed is not None:
        followed.done += 1
    return result


def _begin(own: Tensor, group: dist.ProcessGroup, gathered: bool, wait: bool) -> tuple[Tensor, dist.Work | None]:
    """(result, what to wait for before it is one); there is nothing to wait for where `wait` did."""
    if not gathered:
        total = own.clone()
        return total, dist.all_reduce(total, group=group, async_op=not wait)
    everyone = own.new_empty((dist.get_world_size(group), len(own)))
    return everyone, dist.all_gather(list(everyone.unbind(0)), own, group=group, async_op=not wait)


class Followed:
    """A group's exchanges within one optimizer step's passes, which are the same in every step of a kind.

    They are noted in a rehearsal, counted from then on, and can be finished by a rank that broke off. Nothing else may
    go over the group: the exchanges' order is what ranks know each other by.
    """

    def __init__(self, group: str) -> None:
        self.group = _resolve_process_group(group)
        self.done = 0
        """Exchanges since `begin`."""
        self._known: dict[str, list[Exchange]] = {}
        self._kind = ""
        self._rehearsing = False
        _followed[group] = self

    def begin(self, kind: str) -> None:
        """The passes of a step begin, of a kind that has been rehearsed or is now."""
        self.done, self._kind = 0, kind
        if self._rehearsing:
            self._known[kind] = []

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, nothing goes to other ranks: each takes its own vector for everyone's. What would go is noted."""
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False

    def apart(self, own: Tensor, gathered: bool) -> bool:
        """Whether this exchange is one of a rehearsal; notes it then."""
        if self._rehearsing:
            self._known[self._kind].append(Exchange(gathered, torch.empty_like(own, device="meta"), own.device))
        return self._rehearsing

    def hand_in_zeros(self) -> list[dist.Work]:
        """Begin what is left of the step's exchanges, with nothing: a count of no images in all statistics.

        They are to be waited for when all others have begun as well.
        """
        known, begun = self._known[self._kind], []
        for gathered, vector, device in known[self.done :]:
            _, work = _begin(torch.zeros_like(vector, device=device), self.group, gathered, wait=False)
            assert work is not None
            begun.append(work)
        self.done = len(known)
        return begun
