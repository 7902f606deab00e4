"""What an all-reduce takes between p processes, by the α-β model (Hockney 1994): α seconds a message, β seconds a byte.

ring: 2(p-1) messages of n/p bytes (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002; Thakur et al. 2005,
doi:10.1177/1094342005051521). tree: the two binary trees of NCCL, 2·log2(p) messages deep, each process sends and
receives all n bytes about twice (Sanders, Speck & Träff 2009, doi:10.1016/j.parco.2009.09.001). The faster one counts,
as NCCL chooses. Between machines of several GPUs it is done in three steps: reduce-scatter within each, all-reduce of
each part between them, all-gather within.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What joins processes."""

    latency: float
    """α: seconds of a message, the software that sends it included."""
    bandwidth: float
    """1/β: bytes a second, one way, of one process."""


@dataclass(frozen=True)
class Cluster:
    """GPUs on machines."""

    within: Link
    between: Link
    gpus_per_machine: int
    assumed: str
    """Where the figures come from, in words."""


NVLINK = Link(3e-6, 450e9)
"""Fourth generation: 900 GB/s both ways together (NVIDIA H100 datasheet)."""
CLUSTERS = {
    "nvlink": Cluster(
        NVLINK, NVLINK, 8, "NVLink 4 between all GPUs, 450 GB/s one way (H100 datasheet), 3 µs a message"
    ),
    "ib400": Cluster(
        NVLINK,
        Link(5e-6, 50e9),
        8,
        "8 GPUs a machine on NVLink 4; InfiniBand NDR, 400 Gbit/s for each GPU (DGX H100 datasheet), 5 µs a message",
    ),
    "eth100": Cluster(
        NVLINK,
        Link(30e-6, 12.5e9 / 8),
        8,
        "8 GPUs a machine on NVLink 4; one Ethernet port of 100 Gbit/s for all 8, TCP, 30 µs a message",
    ),
}
"""By what --interconnect takes. Bandwidths are those of the data sheets, latencies are assumed; nothing is measured."""


def all_reduce(size: float, processes: int, link: Link) -> float:
    """Seconds to add up `size` bytes over `processes`, each with a link of its own."""
    if processes == 1 or not size:
        return 0.0
    ring = 2 * (processes - 1) * (link.latency + size / processes / link.bandwidth)
    tree = 2 * math.ceil(math.log2(processes)) * link.latency + 2 * size / link.bandwidth
    return min(ring, tree)


def over_machines(size: float, gpus: int, cluster: Cluster) -> float:
    """Seconds to add up `size` bytes over so many GPUs of a cluster."""
    here = min(gpus, cluster.gpus_per_machine)
    machines = -(-gpus // cluster.gpus_per_machine)
    inside = all_reduce(size, here, cluster.within)  # its two halves stand before and behind what is between
    return inside + all_reduce(size / here, machines, cluster.between)
