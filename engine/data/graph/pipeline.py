"""The DALI graph: one definition for GPU and CPU, files and arrays, training and evaluation.

Where the image is cut is computed outside, from sizes, so that the graph holds nothing but pixels: decode (with EXIF
orientation), cut, resize with an antialiasing filter, flip and normalise. On a GPU the decoder is `mixed`
and everything after it runs on the device; on a CPU the same operators run in DALI's threads, and training images leave
the graph at the cut, for `finishing`.

A CPU decodes little more than the window. A GPU decodes the whole image and cuts it then: nvImageCodec 0.9, which DALI
2.4 asks for, is reported to fail on windows of JPEGs (NVIDIA/nvImageCodec issue 55: an error on an A100, SIGSEGV on an
H100), and its hardware engine decodes whole images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.config.pixels.image_size import sides
from engine.data.preprocessing import Preprocessing

IMAGES, START, SHAPE, REGION, MIRROR = "images", "start", "shape", "region", "mirror"


@dataclass(frozen=True)
class GraphSettings:
    """What a graph is built from."""

    encoded: bool
    """Images arrive as files' bytes; else as uint8 [H, W, C]."""
    train: bool
    """Cut a window of whole pixels, resize and flip; else resize from a region given in source pixels."""
    preprocessing: Preprocessing
    half: bool
    """Emit fp16 rather than fp32."""
    device: torch.device
    """cuda builds the GPU graph, all else the CPU graph."""
    threads: int
    raw: bool = False
    """Emit uint8 [H, W, C], cut, resized and mirrored but not normalised; float32 of 0 to 255 of 16 bits."""

    windows: bool = False
    """In training, end at the cut: emit uint8 [H, W, C] of any size, which `finishing` goes on with."""

    @property
    def deep(self) -> bool:
        """Whether 16 bits are kept."""
        return self.encoded and self.preprocessing.bits == 16


def define_graph(settings: GraphSettings, batch_size: int, depth: int) -> Any:
    """An nvidia.dali.Pipeline, not yet built; feed its inputs by name, in lists of at most `batch_size` samples.

    inputs   IMAGES uint8 [bytes] or [H, W, C]; training: START and SHAPE int32 [2] (y, x) and MIRROR int32 scalar
             (not where it ends at `windows`); evaluation: REGION float32 [4] (top, left, bottom, right)
    output   float32 or float16 [height, width, C], normalised; uint8 where it is raw; where it ends at `windows`, those
    depth    batches in flight
    """
    from nvidia.dali import fn, math, pipeline_def, types

    gpu = settings.device.type == "cuda"
    wanted = settings.preprocessing
    resize = {
        "size": list(sides(wanted.image_size)),
        "interp_type": types.INTERP_CUBIC if wanted.interpolation == "bicubic" else types.INTERP_LINEAR,
        "antialias": True,
        **({"dtype": types.FLOAT} if settings.deep else {}),
    }
    white = 65535 if settings.deep else 255
    decoded = {
        "output_type": types.GRAY if wanted.channels == 1 else types.RGB,
        "dtype": types.UINT16 if settings.deep else types.UINT8,
    }

    @pipeline_def(  # type: ignore[call-overload]  # DALI's stub does not know exec_dynamic
        batch_size=batch_size,
        num_threads=settings.threads,
        device_id=device_index(settings.device) if gpu else None,
        prefetch_queue_depth=depth,
        exec_dynamic=True,  # outputs own their memory, so a batch stays valid while the next is made
    )
    def graph():
        images = fn.external_source(
            name=IMAGES,
            dtype=types.UINT8,
            ndim=1 if settings.encoded else 3,
            layout=None if settings.encoded else "HWC",
            no_copy=not gpu,  # bytes go straight to the CPU decoder; the GPU's reads them later than we keep them
        )
        if settings.train:
            start = fn.external_source(name=START, dtype=types.INT32, ndim=1)
            shape = fn.external_source(name=SHAPE, dtype=types.INT32, ndim=1)
            window = {"start": start, "shape": shape, "axes": [0, 1]}
            if settings.encoded and not gpu:
                images = fn.decoders.image_slice(images, device="cpu", **decoded, **window)
            else:
                whole = fn.decoders.image(images, device="mixed", **decoded) if settings.encoded else images
                images = fn.slice(whole.gpu() if gpu else whole, **window)
            if settings.windows:
                return images
            mirror = fn.external_source(name=MIRROR, dtype=types.INT32, ndim=0)
            images = fn.resize(images, **resize)
        else:
            region = fn.external_source(name=REGION, dtype=types.FLOAT, ndim=1)
            mirror = 0
            if settings.encoded:  # chroma upsampled as on the CPU, so that accuracy is the same on both
                images = fn.decoders.image(
                    images, device="mixed" if gpu else "cpu", jpeg_fancy_upsampling=True, **decoded
                )
            elif gpu:
                images = images.gpu()
            images = fn.resize(images, roi_start=region[0:2], roi_end=region[2:4], **resize)
        if settings.deep and wanted.interpolation == "bicubic":  # whole numbers end where the cubic overshoots
            images = math.clamp(images, 0.0, 65535.0)
        if settings.raw:
            flipped = fn.flip(images, horizontal=mirror)
            return flipped / 257.0 if settings.deep else flipped
        return fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            mean=[white * value for value in wanted.mean],
            std=[white * value for value in wanted.std],
            dtype=types.FLOAT16 if settings.half else types.FLOAT,
            output_layout="HWC",
        )

    return graph()


def build_graph(settings: GraphSettings, batch_size: int, depth: int) -> Any:
    """`define_graph`, built and ready to be fed; raises RuntimeError where its device is not there."""
    pipeline = define_graph(settings, batch_size, depth)
    pipeline.build()
    return pipeline


def device_index(device: torch.device) -> int:
    """The CUDA device's number; a device without one is the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


def output_to_torch(output: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A graph's output as [N, C, H, W] channels-last in `dtype` on `device`, valid for as long as it is held.

    From the GPU graph it is copied on torch's current stream, to which the output must be bound; from the CPU graph an
    fp32 batch is DALI's own memory, which the tensor keeps alive.
    """
    from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

    dense = output.as_tensor()
    if device.type == "cuda":
        images = torch.empty(dense.shape(), dtype=to_torch_type[dense.dtype], device=device)
        feed_ndarray(dense, images, cuda_stream=torch.cuda.current_stream(device))
    else:
        images = torch.from_numpy(np.asarray(dense))
    return images.to(device=device, dtype=dtype).permute(0, 3, 1, 2)
