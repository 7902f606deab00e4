"""The networks. `build("resnext", num_classes=10)` makes one; each file in archs/networks registers its own."""

import pkgutil
from importlib import import_module

import archs.foreign
import archs.networks
from archs.classifier import AuxiliaryOutput, Classifier
from archs.registry import ArchInfo, Reference, UnknownArch, build, lookup, names
from archs.weights import WeightsMismatch, load_reference, load_weights

for _file in pkgutil.walk_packages(archs.networks.__path__, "archs.networks."):
    import_module(_file.name)

__all__ = [
    "ArchInfo",
    "AuxiliaryOutput",
    "Classifier",
    "Reference",
    "UnknownArch",
    "WeightsMismatch",
    "build",
    "load_reference",
    "load_weights",
    "lookup",
    "names",
]
