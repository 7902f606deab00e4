"""The networks. `build("resnext", num_classes=10)` makes one; an architecture file registers itself on import."""

from archs import darknet53, inceptionv3, inceptionv3_fullres, resnet, resnext, resnext29_2x64d  # noqa: F401
from archs.classifier import AuxiliaryOutput, Classifier
from archs.registry import ArchInfo, UnknownArch, build, lookup, names
from archs.weights import WeightsMismatch, load_reference

__all__ = [
    "ArchInfo",
    "AuxiliaryOutput",
    "Classifier",
    "UnknownArch",
    "WeightsMismatch",
    "build",
    "load_reference",
    "lookup",
    "names",
]
