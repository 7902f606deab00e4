"""Threads that change pixels on a CPU, each image in one of them.

torch would split every operator over all cores: an image of 224 pixels is too little work for that, and while a
decoder's threads keep the cores busy, each operator waits for its slowest part.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def single_threads(count: int, name: str) -> ThreadPoolExecutor:
    """`count` threads in which torch computes with one thread; how many it takes elsewhere stays as it is.

    OpenMP keeps that number for each thread by itself. torch keeps one besides, which a thread takes when it first
    asks for it.
    """
    pool, there, before = ThreadPoolExecutor(count, name), Barrier(count), torch.get_num_threads()

    def settle(_: int) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()
        there.wait()  # so that each thread runs one of these

    list(pool.map(settle, range(count)))
    torch.set_num_threads(before)
    return pool


@functools.cache
def augmenting_threads(count: int) -> ThreadPoolExecutor:
    """Those of all augmentations of this process that want `count`."""
    return single_threads(count, "hcr-augment")


os.register_at_fork(after_in_child=augmenting_threads.cache_clear)  # a fork has none of them, and would wait for one
