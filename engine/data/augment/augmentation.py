"""What happens to a training batch between the resize and the network, by the fields of `--augment`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.config.augment import AugmentConfig
from engine.data import sampling
from engine.data.augment import mixing, policies
from engine.data.augment.operators import OPERATORS
from engine.data.augment.policies import CHAINS, DEPTH, Chosen, Policy
from engine.data.augment.threads import augmenting_threads
from engine.data.preprocessing import Preprocessing
from engine.data.sampling import Where
from engine.data.sending import sent

BLUR = (0.1, 2.0)
"""Smallest and largest sigma in pixels (Chen et al. 2020, arXiv:2002.05709, appendix A)."""
ERASED, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Area and shape of what is erased (Zhong et al. 2017, arXiv:1708.04896, section 3.2)."""
ERASING = 5
"""Uniform numbers that erasing reads: whether, area, shape, y, x."""
AUGMIX = 2 + CHAINS
"""And those that AugMix's weights read: the whole's and each chain's."""


IN_CACHE = 2**16
"""Pixels that a thread changes at a time: what an operator writes, the next one finds in the cache."""


class Augmentation:
    """Changes uint8 batches and normalises them; holds nothing that (seed, epoch, image) does not determine.

    config   the fields of `--augment`
    classes  of the soft labels
    epochs   of the run, which say where mixtures end
    threads  that change the images where they are on the CPU
    """

    def __init__(
        self, config: AugmentConfig, wanted: Preprocessing, classes: int, seed: int, epochs: int, threads: int = 1
    ) -> None:
        self.threads = threads
        self.used, self.wanted, self.classes, self.seed = config.resolved, wanted, classes, seed
        self._pixels: Tensor | None = None
        self.mixes_until = epochs - self.used["mix_off_epochs"]
        self.policies = list(_policies(self.used))
        self.augmix = self.used["policy"] == "augmix"
        self.erasing = sum(policy.draws for policy in self.policies)
        self.mixing = self.erasing + ERASING
        self.draws = self.mixing + mixing.DRAWS + AUGMIX

    def __call__(self, images: Tensor, labels: Tensor, where: Where, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(images, labels) of a share as the network gets them.

        images   uint8 [m, C, H, W], cut, resized and mirrored, or float32 of 0 to 255 where nothing chooses operators
        labels   int64 [m]
        returns  images in `dtype`, channels-last, normalised; labels, float32 [m, classes] where images were mixed
        """
        numbers = self.numbers(where)
        chosen = self._choose(numbers, images.shape[2])
        change = self._changed if images.is_cuda else self._in_threads
        images = change(images, numbers, chosen)
        mixup, cutmix = self.used["mixup"], self.used["cutmix"]
        if (mixup or cutmix) and where.epoch < self.mixes_until:
            drawn = numbers[:, self.mixing : self.mixing + mixing.DRAWS]
            if self.used["mix_mode"] == "batch":
                drawn = np.broadcast_to(self._of_batch(where), drawn.shape)
            how = mixing.mixtures(drawn, where.count, mixup, cutmix, self.used["mix_share"], *images.shape[2:])
            if how.any:
                images = mixing.mix_images(images, how)
            labels = mixing.soft_labels(labels, how, self.classes)
        return images.to(dtype).contiguous(memory_format=torch.channels_last), labels

    def _choose(self, numbers: np.ndarray, side: int) -> list[Chosen]:
        """Each policy's choice."""
        at, found = 0, []
        for policy in self.policies:
            found.append(policy.choose(numbers[:, at : at + policy.draws], side))
            at += policy.draws
        return found

    def _in_threads(self, images: Tensor, numbers: np.ndarray, chosen: list[Chosen]) -> Tensor:
        """`_changed`, some images at a time, in channels-last."""
        size = max(1, IN_CACHE // (images.shape[2] * images.shape[3]))
        made = torch.empty(images.shape, dtype=torch.float32, memory_format=torch.channels_last)

        def change(at: int) -> None:
            part = slice(at, at + size)
            made[part] = self._changed(images[part], numbers[part], [one.of(part) for one in chosen])

        list(augmenting_threads(self.threads).map(change, range(0, len(images), size)))
        return made

    def _changed(self, images: Tensor, numbers: np.ndarray, chosen: list[Chosen]) -> Tensor:
        """float32 [m, C, H, W], all that happens to each image by itself."""
        images, channels = images.contiguous(), images.shape[1]
        if channels == 1 and chosen:  # as its copy in three colours, which all operators leave grey
            images = images.expand(-1, 3, -1, -1).contiguous()
        for one in chosen:
            if self.augmix and one.numbers.shape[1] == CHAINS * DEPTH:
                images = _side_by_side(images, one, numbers[:, -AUGMIX:])
            else:
                images = apply(images, one)
        images = self._normalised(images[:, :channels])
        if share := self.used["erasing"]:
            images = _erased(images, numbers[:, self.erasing : self.mixing], share)
        return images

    def numbers(self, where: Where) -> np.ndarray:
        """float64 [m, draws] uniform in [0, 1), each image's own stream of (seed, epoch)."""
        return sampling.numbers_of(where.indices, self.draws, self.seed, where.epoch)

    def _of_batch(self, where: Where) -> np.ndarray:
        """A mixture's numbers for all images of a step, on all ranks."""
        return sampling.numbers_of(np.array([-1 - where.step]), mixing.DRAWS, self.seed, where.epoch)

    def _normalised(self, images: Tensor) -> Tensor:
        if self._pixels is None or self._pixels.device != images.device:  # the copy would wait for the device
            pixels = torch.tensor([self.wanted.mean, self.wanted.std]) * 255
            self._pixels = pixels.view(2, -1, 1, 1).to(images.device)
        return images.to(torch.float32, copy=True).sub_(self._pixels[0]).div_(self._pixels[1])


def _policies(used: dict) -> list[Policy]:
    """What is applied, in order: geometry, jitter, the chosen operators, blur and grey."""
    found = []
    if used["vertical_flip"]:
        found.append(policies.sometimes("vertical-flip", used["vertical_flip"]))
    if used["rotation"]:
        found.append(policies.sometimes("rotate", 1.0, -used["rotation"], used["rotation"]))
    if any(used["jitter"]):
        found.append(policies.jitter(used["jitter"]))
    if used["grayscale"]:
        found.append(policies.sometimes("grayscale", used["grayscale"]))
    chosen = {
        "randaugment": lambda: policies.randaugment(used["operators"], used["magnitude"]),
        "trivialaugment": policies.trivialaugment,
        "autoaugment": policies.autoaugment,
        "augmix": lambda: policies.augmix(used["severity"]),
    }
    if used["policy"] != "none":
        found.append(chosen[used["policy"]]())
    if used["blur"]:
        found.append(policies.sometimes("blur", used["blur"], *BLUR))
    return found


def apply(images: Tensor, chosen: Chosen) -> Tensor:
    """Run each image's operators, slot after slot: the images of one operator together.

    images  uint8 [m, 3, H, W]
    """
    names = list(OPERATORS)
    if len(images) == 1:
        magnitudes = sent(torch.from_numpy(chosen.magnitudes), images.device)
        for slot, number in enumerate(chosen.numbers[0].tolist()):
            if number:
                images = OPERATORS[names[number - 1]](images, magnitudes[:, slot])
        return images
    orders = np.argsort(chosen.numbers, axis=0, kind="stable")
    slots = chosen.numbers.shape[1]
    places = torch.from_numpy(np.stack([orders, np.argsort(orders, axis=0, kind="stable")]))
    strengths = torch.from_numpy(np.take_along_axis(chosen.magnitudes, orders, axis=0))
    places, strengths = sent(places, images.device), sent(strengths, images.device)
    for slot in range(slots):
        found, counts = np.unique(chosen.numbers[:, slot], return_counts=True)
        if not found.any():
            continue
        ends = np.cumsum(counts)
        sorted_images = images[places[0, :, slot]]
        parts = []
        for number, end, count in zip(found.tolist(), ends.tolist(), counts.tolist(), strict=True):
            part = sorted_images[end - count : end]
            if number:
                part = OPERATORS[names[number - 1]](part, strengths[end - count : end, slot])
            parts.append(part)
        images = torch.cat(parts)[places[1, :, slot]]
    return images


def _side_by_side(images: Tensor, chosen: Chosen, numbers: np.ndarray) -> Tensor:
    """AugMix: m of the image and 1 - m of a weighted mean of chains, m uniform, the weights of Dirichlet(1, …)."""
    own = numbers[:, :1]
    weights = -np.log1p(-numbers[:, 2:])  # exponentials over their sum
    weights = np.concatenate([own, (1 - own) * weights / weights.sum(axis=1, keepdims=True)], axis=1)
    shares = sent(torch.from_numpy(weights.astype(np.float32)), images.device)
    total = images * shares[:, 0].view(-1, 1, 1, 1)
    for chain in range(CHAINS):
        part = slice(chain * DEPTH, (chain + 1) * DEPTH)
        changed = apply(images, Chosen(chosen.numbers[:, part], chosen.magnitudes[:, part]))
        total = total + changed * shares[:, 1 + chain].view(-1, 1, 1, 1)
    return total.clamp_(0, 255).to(torch.uint8)


def _erased(images: Tensor, numbers: np.ndarray, share: float) -> Tensor:
    """A rectangle of `share` of the images at 0, which is the mean colour."""
    height, width = images.shape[2:]
    area = (ERASED[0] + (ERASED[1] - ERASED[0]) * numbers[:, 1]) * height * width
    aspect = np.exp(np.log(ASPECT[0]) + (np.log(ASPECT[1]) - np.log(ASPECT[0])) * numbers[:, 2])
    rows = np.clip(np.rint(np.sqrt(area * aspect)), 1, height).astype(np.int64)
    columns = np.clip(np.rint(np.sqrt(area / aspect)), 1, width).astype(np.int64)
    top = (numbers[:, 3] * (height - rows + 1)).astype(np.int64)
    left = (numbers[:, 4] * (width - columns + 1)).astype(np.int64)
    chosen = numbers[:, 0] < share
    if not chosen.any():
        return images
    box = torch.from_numpy(np.stack([top, top + rows * chosen, left, left + columns * chosen], axis=1))
    box = sent(box, images.device)
    return images.masked_fill_(mixing.rectangles(box, height, width), 0.0)
