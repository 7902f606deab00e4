"""How training images are changed at random: the fields of the group `augment`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from engine.config.checks import require
from engine.config.flag import Augment

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"policy": "trivialaugment"},
    "medium": {"policy": "randaugment", "erasing": 0.25, "mixup": 0.2},
    "strong": {"policy": "randaugment", "magnitude": 15, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0},
    "seed": {"crop": "fixed", "jitter": (0.5, 0.5, 0.5, 0.3)},
}
"""What each name stands for; strong is that of DeiT (Touvron et al. 2020, arXiv:2012.12877, table 9) but for its
repeated augmentation, seed is the learning repository's."""


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are changed at random, beside the crop and the mirror image of the group `data`."""

    preset: Annotated[Literal["none", "light", "medium", "strong", "seed"], Augment] = "none"
    """Fields that are not given are those of this preset."""
    policy: Literal["none", "randaugment", "trivialaugment", "autoaugment", "augmix"] | None = None
    """Chosen operators: RandAugment (arXiv:1909.13719), TrivialAugment (2103.10158), AutoAugment (1805.09501, that of
    ImageNet) or AugMix (1912.02781)."""
    operators: int = 2
    """Operators an image of randaugment."""
    magnitude: int | None = None
    """Strength of randaugment's operators, of 30; none is 9."""
    severity: int = 3
    """Strength of augmix's operators, of 10."""
    crop: Literal["resized", "fixed"] | None = None
    """Training crop: a window of random size and shape, or a square of data.eval_crop of the shorter side."""
    vertical_flip: float | None = None
    """Share of images that are turned upside down."""
    rotation: float | None = None
    """Largest angle in degrees, to both sides."""
    jitter: tuple[float, float, float, float] | None = None
    """Largest change of brightness, contrast, saturation (as a share) and hue (of a full circle)."""
    grayscale: float | None = None
    """Share of images that lose their colour."""
    blur: float | None = None
    """Share of images that get a Gaussian blur of 0.1 to 2 pixels."""
    erasing: float | None = None
    """Share of images of which a rectangle becomes the mean colour (Zhong et al. 2017, arXiv:1708.04896)."""
    mixup: float | None = None
    """α of Beta(α, α), the share of an image in a mixture of two (Zhang et al. 2017, arXiv:1710.09412); 0 is off."""
    cutmix: float | None = None
    """The same for the area of a rectangle from another image (Yun et al. 2019, arXiv:1905.04899); 0 is off."""
    mix_mode: Literal["element", "batch"] = "element"
    """Each image has a share of its own, or all of a batch have one."""
    mix_share: float = 1.0
    """Share of images, or of batches, that are mixed."""
    repeats: int = 1
    """Times that an image stands in its batch, each time changed by draws of its own (Hoffer et al. 2019,
    arXiv:1901.09335): an epoch is as long as ever, and shows so many times fewer of the images."""
    mix_off_epochs: int = 0
    """Last epochs without mixtures."""

    def __post_init__(self) -> None:
        for name in ("vertical_flip", "grayscale", "blur", "erasing", "mix_share"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"--augment.{_flag(name)} must be from 0 to 1, not {value}")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 100, f"--augment.{name} must be from 0 (off) to 100, not {value}")
        within = self.magnitude is None or 0 <= self.magnitude <= 30
        require(within, f"--augment.magnitude must be from 0 to 30, not {self.magnitude}")
        require(1 <= self.severity <= 10, f"--augment.severity must be from 1 to 10, not {self.severity}")
        require(1 <= self.operators <= 4, f"--augment.operators must be from 1 to 4, not {self.operators}")
        turned = self.rotation is None or 0 <= self.rotation <= 180
        require(turned, f"--augment.rotation must be from 0 to 180 degrees, not {self.rotation}")
        jitter = self.jitter or (0, 0, 0, 0)
        require(min(jitter) >= 0 and max(jitter[:3]) <= 1, f"--augment.jitter must be from 0 to 1, not {jitter}")
        require(jitter[3] <= 0.5, f"--augment.jitter: the hue's change must be at most 0.5, not {jitter[3]}")
        require(self.mix_off_epochs >= 0, f"--augment.mix-off-epochs must be 0 or more, not {self.mix_off_epochs}")
        require(1 <= self.repeats <= 64, f"--augment.repeats must be from 1 (once) to 64, not {self.repeats}")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Raise ConfigError for a field that nothing would read."""
        used = self.resolved
        default = {field.name: field.default for field in fields(AugmentConfig)}
        for name, read in (
            ("operators", used["policy"] == "randaugment"),
            ("magnitude", used["policy"] == "randaugment"),
            ("severity", used["policy"] == "augmix"),
            ("mix_mode", used["mixup"] or used["cutmix"]),
            ("mix_share", used["mixup"] or used["cutmix"]),
            ("mix_off_epochs", used["mixup"] or used["cutmix"]),
        ):
            what = "--augment.mixup or --augment.cutmix" if name.startswith("mix") else "another --augment.policy"
            require(read or getattr(self, name) == default[name], f"--augment.{_flag(name)} needs {what}")

    @property
    def resolved(self) -> dict[str, Any]:
        """Every field as it holds: given, else the preset's, else off."""
        off = {"policy": "none", "magnitude": 9, "crop": "resized", "jitter": (0.0, 0.0, 0.0, 0.0)}
        known = PRESETS[self.preset]
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: known.get(name, off.get(name, 0.0)) if value is None else value for name, value in given.items()}

    def whole(self) -> AugmentConfig:
        """The same with every field written out, so that it means the same whatever a preset becomes."""
        used = self.resolved
        return replace(self, **used | ({} if used["policy"] == "randaugment" else {"magnitude": None}))

    @property
    def changes_pixels(self) -> bool:
        """Whether there is anything to do behind the crop and the mirror image."""
        used = self.resolved
        return self.chooses_operators or any(used[name] for name in ("erasing", "mixup", "cutmix"))

    @property
    def chooses_operators(self) -> bool:
        """Whether there are operators on grey levels, which have 8 bits."""
        used = self.resolved
        names = ("vertical_flip", "rotation", "grayscale", "blur")
        return used["policy"] != "none" or any(used["jitter"]) or any(used[name] for name in names)

    def describe(self) -> str:
        """In words, for a run's lines; empty where there is nothing beside the crop and the mirror image."""
        used = self.resolved
        strength = {"randaugment": f" {used['operators']} × {used['magnitude']}", "augmix": f" {used['severity']}"}
        parts = [] if used["policy"] == "none" else [used["policy"] + strength.get(used["policy"], "")]
        parts += ["fixed crop"] if used["crop"] == "fixed" else []
        parts += ["jitter " + "/".join(f"{value:g}" for value in used["jitter"])] if any(used["jitter"]) else []
        names = ("vertical_flip", "rotation", "grayscale", "blur", "erasing", "mixup", "cutmix")
        parts += [f"{_flag(name)} {used[name]:g}" for name in names if used[name]]
        parts += [f"each image {used['repeats']} times in its batch"] if used["repeats"] > 1 else []
        if used["mix_off_epochs"]:
            count = used["mix_off_epochs"]
            parts.append(f"no mixtures in the last {'epoch' if count == 1 else f'{count} epochs'}")
        return ", ".join(parts)


def _flag(name: str) -> str:
    return name.replace("_", "-")
