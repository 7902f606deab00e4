"""A cable that delays and loses packets, where the kernel has no netem: this process is the wire between two ends."""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

TUN = "/dev/net/tun"
SET_INTERFACE, PLAIN_PACKETS = 0x400454CA, 0x0001 | 0x1000  # linux/if_tun.h: TUNSETIFF, IFF_TUN | IFF_NO_PI
LARGEST = 1 << 16
"""Bytes of a packet."""


class SlowCable:
    """Two interfaces (TUN devices) of these names, to be moved to their hosts; what one sends the other one gets.

    delay  seconds that each packet takes
    loss   share of the packets that vanish, in both directions

    Raises OSError where this machine has no TUN devices, or does not let us make them.
    """

    def __init__(self, names: Sequence[str], delay: float, loss: float) -> None:
        self.delay, self.loss = delay, loss
        self.carried = self.lost = 0
        """Packets so far."""
        self._chance = random.Random(0)
        self._ends: list[int] = []
        try:
            for name in names:
                self._ends.append(os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
                fcntl.ioctl(self._ends[-1], SET_INTERFACE, struct.pack("16sH", name.encode(), PLAIN_PACKETS))
        except OSError:
            self._close_ends()
            raise
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="cable", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take both interfaces away."""
        self._left.set()
        self._thread.join()
        self._close_ends()

    def _close_ends(self) -> None:
        for end in self._ends:
            os.close(end)
        self._ends.clear()

    def _carry(self) -> None:
        under_way: deque[tuple[float, int, bytes]] = deque()  # all take as long: they arrive in the order of sending
        while not self._left.is_set():
            patience = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.05
            sending, _, _ = select.select(self._ends, [], [], min(patience, 0.05))
            now = time.monotonic()
            for end in sending:
                with suppress(OSError):  # it is down
                    packet = os.read(end, LARGEST)
                    if self._chance.random() < self.loss:
                        self.lost += 1
                    else:
                        under_way.append((now + self.delay, self._ends[1 - self._ends.index(end)], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = under_way.popleft()
                with suppress(OSError):  # its queue is full: lost, as on any wire
                    os.write(end, packet)
                    self.carried += 1
