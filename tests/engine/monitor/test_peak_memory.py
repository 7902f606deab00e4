"""Which bytes a run's peak is: those of planned steps, whatever cuDNN tried and an evaluation took beside them."""

import pytest
import torch

from engine.monitor.peak_memory import PeakMemory

MIB = 1 << 20


def test_nothing_is_measured_on_a_cpu():
    peaks = PeakMemory(torch.device("cpu"))
    peaks.restart()
    peaks.interval(counts=True)
    assert (peaks.allocated, peaks.reserved, peaks.outside()) == (0, 0, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_trials_and_evaluations_do_not_count_nor_does_what_the_allocator_keeps_of_them():
    torch.cuda.empty_cache()
    peaks, before = PeakMemory(torch.device("cuda")), torch.cuda.memory_reserved()
    used = torch.cuda.memory_allocated()

    def take(mebibytes):
        torch.empty(mebibytes * MIB, dtype=torch.uint8, device="cuda")

    peaks.restart()
    take(400)  # the first step's trials
    peaks.interval(counts=False)
    take(100)
    peaks.interval(counts=True)
    take(90)
    peaks.interval(counts=True)
    steps = peaks.reserved - before
    assert 100 * MIB <= steps <= 160 * MIB
    assert 100 * MIB <= peaks.allocated - used <= 160 * MIB
    take(300)  # an evaluation, behind the epoch's last step
    peaks.restart()
    take(80)
    peaks.interval(counts=True)
    assert peaks.reserved - before == steps
