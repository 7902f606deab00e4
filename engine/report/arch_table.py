"""The networks as tables: for `launch/train.py --list-archs`, and for the README.

`python -m engine.report.arch_table` writes all tables into README.md, between their marks; a test
holds the file to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import archs
from archs.registry import ArchInfo
from engine.runs.provenance import ROOT
from engine.runs.text_table import text_table

HEADS = ("network", "paper", "weights load from", "year", "parameters", "multiply-adds", "image size")

LEARNING_REPOSITORY: tuple[tuple[str, float, str, str], ...] = (
    ("AlexNet", 58.32, "alexnet", ""),
    ("VGG-11", 128.81, "vgg11", ""),
    ("NIN", 2.02, "nin", ""),
    ("ResNet-18", 11.18, "resnet18", ""),
    ("DenseNet-40", 0.18, "densenet40", ""),
    ("MobileNetV1", 3.22, "mobilenetv1", ""),
    ("MobileNetV2", 2.24, "mobilenetv2", ""),
    (
        "GoogLeNet",
        5.98,
        "googlenet",
        "ours is torchvision's: two auxiliary heads, BatchNorm, 3×3 in place of 5×5 convolutions; theirs has 5×5 and "
        "neither heads nor BatchNorm.",
    ),
    ("InceptionV3", 22.13, "inceptionv3_fullres", ""),
    ("Darknet-53", 40.60, "darknet53", ""),
    ("Xception", 20.83, "xception", ""),
    ("ResNeXt-29 2×64d", 9.13, "resnext29_2x64d", ""),
    (
        "SE-ResNet-18",
        11.23,
        "se_resnet18",
        "ours is timm's, a gate with biases in every block; theirs has gates without biases between the stages, and "
        "biases in its convolutions.",
    ),
    ("SqueezeNet", 0.73, "squeezenet1_1", ""),
    (
        "ShuffleNet g2",
        0.89,
        "shufflenet_g2",
        "in units of stride 2 theirs narrows to a quarter of the branch, ours, as the paper's table, to a quarter of "
        "the output; its stem is a 1×1 convolution at stride 1.",
    ),
    ("EfficientNet-B0", 4.02, "efficientnet_b0", ""),
    (
        "EfficientNetV2-S",
        20.33,
        "efficientnetv2_s",
        "its last convolution has 1,792 channels, the paper's and both libraries' 1,280.",
    ),
    ("ViT", 53.59, "vit_d6", ""),
    ("MLP-Mixer", 13.63, "mixer_d12", ""),
    ("ResMLP", 14.97, "resmlp_12", ""),
    (
        "gMLP",
        2.97,
        "gmlp_d6",
        "its spatial projection is written for 256 positions, but 224-pixel images have 196 patches: ours has 196.",
    ),
)
"""Its name, its parameters in millions with 10 classes (counted from its code), ours, and why the two differ."""


def short(count: float) -> str:
    """A count with three or four digits and its unit: 25.03 M, 4.23 G."""
    unit, name = (1e9, "G") if count >= 1e9 else (1e6, "M")
    value = count / unit
    return f"{value:.{2 if value < 100 else 1}f} {name}"


def paper_number(info: ArchInfo) -> str:
    """The arXiv number, or the title where the paper is not there."""
    found = re.search(r"arXiv:\d+\.\d+", info.paper)
    return found.group() if found else info.paper


def facts(info: ArchInfo) -> tuple[str, ...]:
    """The cells of HEADS for one network, its name with its aliases first."""
    return (
        ", ".join((info.name, *info.aliases)),
        paper_number(info),
        ", ".join(info.sources),
        str(info.year),
        short(info.parameters),
        short(info.multiply_adds),
        str(info.image_size),
    )


def listing() -> str:
    """Every network as text: parameters with 1,000 classes, multiply-adds of one image at its size."""
    rows = [facts(archs.lookup(name)) for name in archs.names()]
    return text_table(HEADS, rows, left=3) + "\nparameters with 1,000 classes; multiply-adds of one image at its size"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published(text: str) -> list[str]:
    """The networks that a README's table names. Raises ValueError where there is no such table."""
    table = re.search(r"<!-- networks -->\n(.*?)<!-- /networks -->", text, flags=re.DOTALL)
    if table is None:
        raise ValueError("the text has no table of networks")
    return re.findall(r"^\| `(\w+)`", table[1], flags=re.MULTILINE)


def networks_table(names: Sequence[str]) -> str:
    """Networks for the README: names as code, papers as links."""
    rows = []
    for name in names:
        info = archs.lookup(name)
        called, paper, *others = facts(info)
        linked = f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" if "arXiv" in paper else paper
        quoted = ", ".join(f"`{each}`" for each in called.split(", "))
        rows.append((quoted, linked, *others))
    return markdown(HEADS, rows)


def millions(name: str, num_classes: int = 10) -> float:
    """Parameters of a network in millions, auxiliary heads included, counted on the meta device."""
    import torch

    with torch.device("meta"):
        model = archs.build(name, num_classes)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def comparison_table() -> str:
    """The learning repository's networks beside ours, with a numbered note where the counts differ."""
    rows, notes = [], []
    for theirs, count, name, why in LEARNING_REPOSITORY:
        mark = ""
        if why:
            notes.append(f"{len(notes) + 1}. {theirs}: {why}")
            mark = f" ({len(notes)})"
        rows.append((theirs, f"{count:.2f} M", f"`{name}`", f"{millions(name):.2f} M{mark}"))
    table = markdown(("learning repository", "parameters", "ours", "parameters"), rows)
    return "\n\n".join((table, "\n".join(notes))) if notes else table


def memory_table() -> str:
    """What trains in which memory in bf16, from the planned matrix: the networks that do not fit as they are."""
    from engine.plan.matrix import MATRIX, brief

    rows = json.loads((ROOT / MATRIX).read_text(encoding="utf-8"))["rows"]
    return brief(rows, "bf16")


def with_tables(text: str, names: Sequence[str] | None = None) -> str:
    """README text with what stands between `<!-- NAME -->` and `<!-- /NAME -->` made anew.

    names  the networks to list; None is all

    Raises ValueError where a pair of marks is missing.
    """
    blocks = {
        "networks": lambda: networks_table(archs.names() if names is None else names),
        "comparison": comparison_table,
        "memory": memory_table,
    }
    for name, make in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the text has {count} pairs of marks for {name}, not one")
    return text


def main() -> None:
    """Rewrite README.md's tables."""
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
