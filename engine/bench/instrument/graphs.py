"""A step as one CUDA graph: the host launches it once, and what is left is the GPU's own time.

The recipe is PyTorch's (notes/cuda.html, "whole-network capture"): a few steps on a stream of their own, so that
everything that is allocated once is there, then one step recorded. Inputs are the same tensors at every replay.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.bench.instrument.peers import NotAvailable

WARM_UP = 3
"""Steps before the recording: autotuning, an optimizer's state, cuDNN's choices."""


def graphed(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """A function that replays `step`, which must wait for nothing and read no other inputs than the recorded ones.

    Raises NotAvailable without a GPU; what the recording raises where the step cannot be recorded.
    """
    if device.type != "cuda":
        raise NotAvailable("CUDA graphs need a GPU")
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
