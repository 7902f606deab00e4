"""`make bench`: nothing that is watched has become worse than this machine's baseline under profiles/.

Counted quantities are compared exactly, the step's time as a ratio to a reference step of the same run.
"""

import pytest

from engine.bench.instrument.measure import fair_settings
from engine.bench.regress import watch_step, worse_counts
from engine.bench.watched import COUNTED, StepRace

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", COUNTED)
def test_counts(name, counts, baseline):
    worse = worse_counts(counts, baseline, (name,))
    assert not worse, worse[0]


def test_step_time(benchmark, trainer, baseline, another_trainer):
    races = [StepRace(trainer)]

    def new_race() -> StepRace:
        races.append(StepRace(trainer if len(races) == 1 else another_trainer()))
        return races[-1]

    with fair_settings():
        benchmark.pedantic(races[0].round, rounds=5, iterations=1)  # for pytest-benchmark's own table and its JSON
        slower = watch_step(new_race, baseline)
    benchmark.extra_info |= {clock: ratio.as_dict() for clock, ratio in races[-1].ratios().items()}
    assert not slower, "; ".join(slower.values())
