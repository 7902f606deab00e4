"""Which library makes batches: DALI, its torchvision twin where DALI has no wheel, torch where nothing is decoded."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal

import torch

from engine.data.decoded.on_device import DeviceLoader, fits_on_device
from engine.data.loader import Loader, SplitName
from engine.data.sources.source import DataError, Source, Split

logger = logging.getLogger("hcr")


def chosen_backend(
    wanted: Literal["auto", "dali", "torchvision"], on_gpu: Split | None = None
) -> Literal["dali", "torchvision", "torch"]:
    """What `make_loader` will take, without loading it.

    on_gpu  the images of a loader for a GPU, which may lie there whole
    """
    if wanted == "auto" and on_gpu is not None and fits_on_device(on_gpu):
        return "torch"
    return "torchvision" if wanted == "torchvision" or not _dali_is_there() else "dali"


def _dali_is_there() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nor is any package of NVIDIA's
        return False


def make_loader(source: Source, split: SplitName, **settings) -> Loader:
    """A loader of the backend that `config.backend` names; `auto` is DALI, or torchvision where DALI is not installed.

    On a GPU `auto` keeps small sets of decoded images there and takes neither; on a CPU decoded images need no DALI.
    Takes the arguments of `Loader`; raises DataError where backend `dali` is asked for and cannot be imported.
    """
    wanted, device = settings["config"].backend, torch.device(settings["device"])
    if device.type == "cuda" and chosen_backend(wanted, source.split(split)) == "torch":
        return DeviceLoader(source, split, **settings)
    if wanted in ("auto", "dali"):
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            if wanted == "dali":
                raise DataError(
                    f"--data.backend dali: nvidia.dali cannot be imported ({error}); install nvidia-dali-cuda120, or "
                    "use --data.backend torchvision"
                ) from None
            logger.info("DALI cannot be imported (%s); torchvision reads the images instead", error)
        else:
            if source.split(split).decoded is not None and device.type == "cpu":
                from engine.data.decoded.loader import DecodedLoader

                return DecodedLoader(source, split, **settings)
            from engine.data.graph.dali import DaliLoader

            return DaliLoader(source, split, **settings)
    from engine.data.graph.reference import TorchvisionLoader

    return TorchvisionLoader(source, split, **settings)
