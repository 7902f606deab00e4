"""Moments within a run at which something happens."""

from __future__ import annotations

from collections.abc import Callable


def at_batch(number: int, action: Callable[[], None], train: bool = True) -> Callable[[], None]:
    """Lets `action` happen in the child when it asks for its n-th batch."""

    def before() -> None:
        from engine.data.graph.dali import DaliLoader

        count, real = [0], DaliLoader._batch

        def batch(self, position):
            count[0] += 1
            if count[0] == number:
                action()
            return real(self, position)

        DaliLoader._batch = batch

    return before
