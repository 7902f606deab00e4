"""The networks. `build("resnext", num_classes=10)` makes one; each file here registers its networks on import."""

import pkgutil
from importlib import import_module

from archs.classifier import AuxiliaryOutput, Classifier
from archs.registry import ArchInfo, Reference, UnknownArch, build, lookup, names
from archs.weights import WeightsMismatch, load_reference, load_weights

for _file in pkgutil.iter_modules(__path__):
    import_module(f"archs.{_file.name}")

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
