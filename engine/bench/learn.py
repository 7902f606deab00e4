"""Does every network learn? Each is trained on the digits, through the program that a person would start.

`python -m engine.bench.learn` trains all that profiles/<machine>/learn.json does not have yet; names after it, those
alone, anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import archs
from engine.bench.instrument.record import Store
from engine.bench.suites.run_record import run_figures
from engine.runs.provenance import ROOT

GOAL = 0.95
"""Val accuracy on the digits that every network reaches."""

DIFFERENT: tuple[tuple[str, dict[str, str]], ...] = (
    # No normalisation: slower, and at a lower rate. AlexNet and NIN need images of 63 and 39 pixels.
    ("alexnet*", {"--image-size": "64", "--lr": "0.0005", "--epochs": "8"}),
    # Biases of one in 4,096 units each: all of them move alike, and a larger rate switches the layer off.
    ("alexnet", {"--lr": "0.00005", "--model.dropout": "0"}),
    ("nin", {"--image-size": "48", "--epochs": "12"}),
    ("squeezenet*", {"--image-size": "64", "--epochs": "12"}),
    ("vgg??", {"--lr": "0.0003", "--epochs": "6", "--batch-size": "64"}),
    ("vgg11", {"--epochs": "8"}),
    # Sixteen convolutions deep: 57.4 % after 225 steps.
    ("vgg19_bn", {"--lr": "0.0003", "--epochs": "9"}),
    # A 3x3 filter has four of its nine weights in two by two pixels: the signal fades, 32 pixels stay at chance.
    ("vgg19", {"--image-size": "64", "--lr": "0.0002", "--batch-size": "32", "--epochs": "9"}),
    # Four patches an image, and no convolution that knows what neighbours are.
    ("vit_*", {"--lr": "0.0005", "--epochs": "15"}),
    ("vit_b??", {"--epochs": "10", "--batch-size": "64"}),
    ("vit_b32", {"--image-size": "64"}),
    ("vit_d6", {"--image-size": "64"}),
    ("mixer_*", {"--epochs": "15"}),
    ("mixer_b16", {"--epochs": "10", "--batch-size": "64"}),
    ("resmlp_*", {"--epochs": "15"}),
    ("gmlp_*", {"--epochs": "15"}),
    # Narrow layers, and 32 pixels would leave a single one: larger images, a higher rate.
    ("mobilenetv1*", {"--image-size": "64", "--epochs": "12", "--lr": "0.01"}),
    ("mobilenetv2", {"--image-size": "64", "--epochs": "8", "--lr": "0.004"}),
    ("shufflenet*", {"--image-size": "64", "--lr": "0.003"}),
    ("efficientnet*", {"--image-size": "64", "--epochs": "8", "--lr": "0.002"}),
    # Their BatchNorm moves by a hundredth a step: its statistics arrive when the weights hardly move any more. B5 was
    # at chance after 360 steps, B6 had 91.9 % after 900.
    ("efficientnet_b[567]", {"--batch-size": "8", "--epochs": "5", "--lr": "0.001", "--model.drop-path": "0"}),
    # On this machine's CPU depthwise convolutions were slower in bf16.
    ("efficientnet_b[67]", {"--epochs": "6", "--precision": "fp32"}),
    # 57 and 79 residual blocks: at 0.002, with a batch of 32 and branches dropped, 25 % of the images after 150 steps.
    (
        "efficientnetv2_[ml]",
        {"--image-size": "48", "--epochs": "6", "--batch-size": "16", "--lr": "0.001", "--model.drop-path": "0"},
    ),
    # 59.1 % after 540 steps, and still rising.
    ("efficientnetv2_l", {"--batch-size": "8", "--epochs": "8"}),
    # Five passes left ResNet-50 and ResNeXt-50 at 94.2 and 95.0 %; at 32 pixels ten left ResNet-101 at 95.0 %.
    *((name, {"--epochs": "7"}) for name in ("resnet50", "resnext50")),
    # ResNet-152 had 92.8 % after 360 steps.
    *((name, {"--image-size": "48", "--epochs": "8"}) for name in ("resnet1[05]*", "resnext101*")),
    *((name, {"--batch-size": "16"}) for name in ("resnet152", "resnext101*")),
    # At its smallest size, 75 pixels, a single pixel is left in the last blocks: 78.8 %. Six passes at 107: 94.2 %.
    ("inceptionv3", {"--image-size": "107", "--epochs": "8"}),
    # Maps so large that the digits' own eight pixels do.
    ("inceptionv3_fullres", {"--image-size": "12"}),
    ("resnext29_2x64d", {"--image-size": "16"}),
    ("resnext29_8x64d", {"--image-size": "8"}),
    # 32 pixels would leave two by two of them to the eight middle blocks.
    ("xception", {"--image-size": "48"}),
    # What auto chooses on a CPU that has it; said, so that these are the same on one that has not.
    *(
        (name, {"--precision": "bf16"})
        for name in ("vgg*", "resnet1[05]*", "resnext101*", "resnext29*", "inceptionv3*", "vit_b16", "mixer_?16")
    ),
)
"""What differs from configs/digits.yaml, by name pattern; later rows win."""


def flags(name: str) -> list[str]:
    """The command line of one network's training, after `launch/train.py`."""
    different: dict[str, str] = {}
    for pattern, changes in DIFFERENT:
        if fnmatch(name, pattern):
            different |= changes
    told = [part for pair in different.items() for part in pair]
    return ["--arch", name, "--config", "configs/digits.yaml", *told]


def learn(name: str) -> dict:
    """Train the network of that name; returns its figures, or the error that it ended with."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "launch/train.py", *flags(name), "--output", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return {"error": "".join(done.stderr.strip().splitlines()[-1:]) or f"exit code {done.returncode}"}
        figures = run_figures(folder)
    return figures | {"command": " ".join(["python", *command[1:-2]])}


def cost(name: str) -> float:
    """Multiply-adds a pixel: the cheapest are trained first."""
    info = archs.lookup(name)
    return info.multiply_adds / info.image_size**2


def main(arguments: Sequence[str]) -> int:
    """Train, write after each network; returns 1 where one has not reached GOAL."""
    parser = argparse.ArgumentParser(description="Train every network on the digits.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these alone, anew; none is all that have no row yet")
    names = parser.parse_args(arguments).names
    try:
        asked = [archs.lookup(name).name for name in names]
    except archs.UnknownArch as error:
        parser.error(str(error))
    store = Store("learn")
    for name in asked or sorted(set(archs.names()) - store.rows.keys(), key=cost):
        began = time.perf_counter()
        figures = learn(name)
        status, content = ("error", figures) if "error" in figures else ("measured", {"figures": figures})
        store.put(name, {"flags": flags(name)}, status, time.perf_counter() - began, content)
        print(f"{name:<20} {told(figures)}", flush=True)
    reached = {name for name, row in store.rows.items() if accuracy(row) >= GOAL}
    short = ", ".join(sorted(set(archs.names()) - reached)) or "none"
    print(f"{len(reached)} of {len(archs.names())} reach {GOAL:.0%}; not, or not yet: {short}")
    return int(short != "none")


def accuracy(row: dict) -> float:
    """Best val accuracy of a row; 0 where it has none."""
    return row.get("figures", {}).get("best_val_accuracy", 0.0)


def told(figures: dict) -> str:
    """One network's result in words."""
    if "error" in figures:
        return figures["error"]
    return f"{figures['best_val_accuracy']:.2%} in {figures['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
