"""What a weights file says of itself, read back; foreign and damaged files in one sentence."""

import pytest
import torch

from engine.config import ConfigError
from engine.runs.weights_facts import CHECKSUM, WeightsFacts, checksum, refuse_damaged

FACTS = WeightsFacts("resnet18", ["a", "é\udcff"], {"width": 0.5}, 64, {"digest": "x"}, {"optim.lr": 0.1})


def test_facts_come_back():
    assert WeightsFacts.from_metadata(FACTS.as_metadata(), "w") == FACTS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("classes", text) for text in ("", "{", "3", "[]", "[1]", '"ab"', "null", '["a", "a"]')],
        *[
            ("image_size", text)
            for text in ("", "big", "-1", "true", "1e9", "0", "Infinity", "9" * 5000, "16385", "9999999", "[8, 65500]")
        ],
        *[(name, text) for name in ("options", "data", "run") for text in ("[", "[]", "[" * 100_000)],
        ("arch", None),
    ],
)
def test_foreign_metadata_is_told_by_its_entry(name, text):
    metadata = FACTS.as_metadata()
    if text is None:
        del metadata[name]
        name = "network"
    else:
        metadata[name] = text
    with pytest.raises(ConfigError, match=f"^w: what it says of itself cannot be .*{name}|^w does not .*{name}"):
        WeightsFacts.from_metadata(metadata, "w")


def test_every_flipped_bit_of_a_tensor_is_found():
    tensors = {"a": torch.arange(3.0), "half": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    written = {CHECKSUM: checksum(tensors)}
    refuse_damaged(dict(reversed(tensors.items())), written, "w")
    refuse_damaged(tensors, {}, "w")  # older files have no checksum
    for name, tensor in tensors.items():
        changed = tensor.clone().flatten()
        changed.view(torch.uint8)[0] ^= 1
        with pytest.raises(ConfigError, match="damaged"):
            refuse_damaged({**tensors, name: changed.reshape(tensor.shape)}, written, "w")
