"""launch/train.py on ranks that have said before how much memory they have: DeepSpeed finds its exchange set up."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tests.launch.norm_free  # noqa: F401  registers the network

if __name__ == "__main__":
    from engine.config import parse
    from engine.plan.budget import least_over_ranks
    from engine.step.wrap import Launch
    from engine.train.run import train

    launch = Launch.detect()
    print(f"rank {launch.rank} of {launch.ranks}: least {least_over_ranks(100 + launch.rank, launch)}", flush=True)
    sys.exit(train(parse()))
