"""launch/train.py with one more network, without BatchNorm and dropout: how a batch is split changes no loss."""

import os
import sys
import time
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch import nn

from archs.registry import register


@register(
    "norm_free",
    paper="none: for tests",
    year=2026,
    image_size=32,
    parameters=0,
    multiply_adds=0.0,
)
class NormFree(nn.Module):
    """Three convolutions and a classifier, for 32×32 images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        )
        self.head = nn.Sequential(OrderedDict(fc=nn.Linear(32 * 8 * 8, num_classes)))

    def blocks(self):
        yield self.stem
        yield from self.stages

    def forward(self, images):
        return self.head(self.stages(self.stem(images)).flatten(1))


def hold_at(step: int, released: Path) -> None:
    """Let the run stand still once the row of that step is written, until a file is there: to be met in its middle."""
    from engine.runs.runfolder import RunFolder

    append = RunFolder.append

    def held(self: RunFolder, kind: str, **row) -> None:
        append(self, kind, **row)
        while kind == "step" and row["step"] == step and not released.exists():
            time.sleep(0.01)

    RunFolder.append = held


if __name__ == "__main__":
    from engine.recovery.start import begin

    begin()
    if "HELD" in os.environ:  # STEP:FILE
        number, _, file = os.environ["HELD"].partition(":")
        hold_at(int(number), Path(file))
    from engine.config import ConfigError
    from engine.train.run import described, refuse, train

    try:
        asked = described()
    except ConfigError as error:
        sys.exit(refuse(error))
    sys.exit(train(asked))
