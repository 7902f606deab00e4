"""Trained weights as files have them, and the network that they make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import ConfigError, DataConfig, find_run, from_yaml, require
from engine.config.pixels.image_size import ImageSize, sides
from engine.data.fingerprint import Fingerprint
from engine.data.preprocessing import Preprocessing
from engine.data.sources.found import MEAN, STD
from engine.runs.weights_facts import WeightsFacts, refuse_damaged, refuse_odd_names

if TYPE_CHECKING:
    import torch

    import archs


@dataclass(frozen=True)
class Weights:
    """A network's tensors and what they were trained as."""

    path: Path
    """The file that holds them."""
    tensors: dict
    arch: str
    options: dict
    """What `archs.build` was told beside the name."""
    classes: list[str] | None
    image_size: ImageSize
    data: DataConfig | None
    """What the run was trained on, where the weights lie in its folder."""
    preprocessing: Preprocessing | None = None
    """The pixels they expect; None where nobody wrote it down."""
    trained_on: Fingerprint | None = None
    """The data they were trained on; None where nobody wrote it down."""
    run: Path | None = None
    """The folder of the run that trained them; None where they lie elsewhere."""

    @property
    def class_count(self) -> int:
        """Rows of the head. Raises ConfigError where the names are not as many."""
        if ":" in self.arch and self.classes is not None:
            return len(self.classes)  # another library's network: what it calls its head is its own affair
        from archs.weights import WeightsMismatch, head_rows, logits_of, refuse_other_count

        if (count := head_rows(self.tensors, logits_of(self.arch))) is None:
            raise ConfigError(f"{self.path} holds no head of a classifier ({', '.join(list(self.tensors)[:3])}, …)")
        try:
            refuse_other_count(self.tensors, count if self.classes is None else len(self.classes), str(self.path))
        except WeightsMismatch as error:
            raise ConfigError(str(error)) from None
        return count

    def class_names(self) -> list[str]:
        """The classes in order; numbers where nobody wrote the names down. Raises ConfigError as `class_count`."""
        count = self.class_count
        return self.classes or [str(number) for number in range(count)]

    def expected(self) -> Preprocessing:
        """The pixels that they expect, or ImageNet's where nobody wrote it down."""
        return self.preprocessing or Preprocessing(MEAN, STD, 0.875, "bilinear", self.image_size)

    def build(self) -> archs.Classifier:
        """The network with these weights, in evaluation mode on the CPU. Raises ConfigError where they do not fit."""
        import archs
        from engine.step.weights.described import refuse_other_description

        count, origin = self.class_count, str(self.path)
        refuse_other_description(self.arch, count, self.image_size, self.options, self.tensors, origin)
        model = archs.build(self.arch, count, image_size=self.image_size, **self.options)
        try:
            model.refuse_size(*sides(self.expected().image_size))
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
        model.load_state_dict(self.tensors)
        return model.eval()

    def refuse_batch(self, pictures: int) -> None:
        """Raise ConfigError where a batch of so many pictures alone is more than the memory that there is."""
        from engine.step.device_memory.batch import refuse_batch

        expected = self.expected()
        refuse_batch(pictures, expected.image_size, expected.channels, str(self.path))

    def digest(self) -> str:
        """SHA-256 of the file that holds them."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path, arch: str | None = None) -> Weights:
    """Load weights without pickle from any of the places that a run leaves them in.

    arch  the network, for a file that does not say: ours, timm's and torchvision's keys are known

    Raises ConfigError for a path that holds none, or a file that does not say which network it is of.
    """
    from engine.recovery.checkpoint import checkpoint_to_resume, read_state
    from engine.step.network import network_options

    if path.is_dir() and (path / "config.yaml").is_file():
        path = path / "model.safetensors"
        require(path.is_file(), f"--checkpoint {path.parent}: no model.safetensors yet; name a checkpoint in it")
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin") and path.name != "trainer.pt":
        return _of_file(path, arch)
    checkpoint = checkpoint_to_resume(path, path / "checkpoints")
    if checkpoint is None:
        raise ConfigError(f"--checkpoint {path}: neither a run folder, nor a checkpoint, nor a .safetensors")
    run = find_run(str(checkpoint))
    config = from_yaml(run / "config.yaml")
    state = read_state(checkpoint / "trainer.pt")
    require("model" in state, f"--checkpoint {path} is sharded by DeepSpeed; evaluate the run folder's best weights")
    model, data, trained_on = config.model, config.data, Fingerprint.from_dict(state.get("data"))
    return Weights(
        checkpoint / "trainer.pt",
        state["average"]["tensors"] if "average" in state else state["model"],  # what the run itself evaluates
        _named_network(arch, model.arch, path),
        network_options(model, data.channels),
        trained_on and refuse_odd_names(trained_on.classes, f"--checkpoint {path}"),
        data.image_size,
        data,
        Preprocessing.named_by(data),
        trained_on,
        run,
    )


def _of_file(path: Path, arch: str | None) -> Weights:
    require(path.is_file(), f"--checkpoint {path}: no such file")
    from safetensors import SafetensorError, safe_open

    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"--checkpoint {path} cannot be read: {error}") from error
    if "arch" not in metadata:
        require(
            arch is not None,
            f"--checkpoint {path} does not say which network it is of; name it with --arch, or name a run folder",
        )
        assert arch is not None
        return _foreign(path, arch, metadata)
    origin = f"--checkpoint {path}"
    facts = WeightsFacts.from_metadata(metadata, origin)
    refuse_damaged(tensors, metadata, origin)
    require(
        ".py:" not in facts.arch or arch is not None,  # a file of weights may not say which code is run
        f"--checkpoint {path} is of a network of one's own: name it with --arch {facts.arch}",
    )
    named = _named_network(arch, facts.arch, path)
    run = path.parent if (path.parent / "config.yaml").is_file() else None
    data = from_yaml(run / "config.yaml").data if run else None
    expected = Preprocessing.from_json(facts.preprocessing, origin) if facts.preprocessing else None
    size, trained_on = facts.image_size, Fingerprint.from_dict(facts.data)
    return Weights(path, tensors, named, facts.options, facts.classes, size, data, expected, trained_on, run)


def _named_network(asked: str | None, known: str, path: Path) -> str:
    """The network of weights of `known`; of one's own, the file that is named now. Raises ConfigError for another."""
    if asked is None or asked == known:
        return known
    if ".py:" in known and ".py:" in asked:
        return asked
    import archs

    try:
        same = archs.lookup(asked).name == archs.lookup(known).name
    except ValueError as error:
        raise ConfigError(f"--arch: {error}") from None
    require(same, f"--checkpoint {path} is of {known}, not of {asked}")
    return known


def _foreign(path: Path, arch: str, facts: dict[str, str]) -> Weights:
    """Weights that do not say their network, under whichever keys: brought under ours."""
    import torch

    import archs
    from archs.registry import options_of
    from archs.weights import our_keys
    from engine.step.weights.files import named_classes, read_weight_file

    tensors = read_weight_file(path, f"--checkpoint {path}")
    try:
        info = archs.lookup(arch)
    except ValueError as error:
        raise ConfigError(f"--arch: {error}") from None
    named, source = our_keys(tensors, info.name)
    options: dict[str, Any] = next((dict(one.options) for one in info.references if one.source == source), {})
    if "auxiliary" in options_of(info.name):
        options["auxiliary"] = False  # it serves training alone
        named = {key: tensor for key, tensor in named.items() if not key.startswith("auxiliary.")}
    for key in [key for key in named if key.endswith("running_mean")]:  # older files do not count
        named.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    origin = f"--checkpoint {path}"
    expected = Preprocessing.from_json(facts["preprocessing"], origin) if "preprocessing" in facts else None
    classes = named_classes(facts, origin)
    size = expected.image_size if expected else info.image_size
    return Weights(path, named, info.name, options, classes, size, None, expected)


def for_use(
    weights: Weights, device: torch.device, precision: str
) -> tuple[archs.Classifier, Callable[[torch.Tensor], Any]]:
    """(network, forward): on the device, channels-last, in `precision` ("auto" as in training).

    Evaluation and prediction both go through here: for the same images they have the same logits.
    """
    import torch

    from engine.step.plan import Hardware, choose_precision
    from engine.step.wrap import AUTOCAST_DTYPES

    chosen = choose_precision(precision, Hardware.detect())
    model = weights.build().to(device).to(memory_format=torch.channels_last)

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, AUTOCAST_DTYPES[chosen], enabled=chosen != "fp32"):
            return model(images)

    return model, forward
