"""Fine-tuning on a GPU: what is frozen stays as the weights had it, what is trained moves, all of it where asked."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import archs

pytest.importorskip("tyro", reason="tyro is not installed: there is no command line")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("how", [("head",), ("1", "--recompute", "block"), ("all", "--optim.layer-decay", "0.5")])
def test_what_is_frozen_stays_to_the_bit(run_here, tmp_path, how):
    torch.manual_seed(1)
    before = archs.build("convnet_bn", 2, image_size=32).state_dict()
    save_file(before, tmp_path / "before.safetensors", metadata={"classes": json.dumps(["cat", "cow"])})
    done = run_here("--no-compile", "--pretrained", tmp_path / "before.safetensors", "--finetune", *how)
    assert "the head knows cat by name, dog start anew" in done.out and ("frozen: " in done.out) == (how[0] != "all")
    after = load_file(tmp_path / "run" / "model.safetensors")
    changed = {key.rpartition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    with torch.device("meta"):
        network = archs.build("convnet_bn", 2, image_size=32)
    blocks = [{id(one) for one in block.modules()} for block in network.blocks()]
    first = {"head": len(blocks), "1": len(blocks) - 1, "all": 0}[how[0]]
    below = {id for block in blocks[:first] for id in block}
    names = {name for name, module in network.named_modules() if id(module) in below}
    assert not changed & names and any(name.startswith("head") for name in changed)
    trained = [name for name, module in network.named_modules() if any(id(module) in block for block in blocks[first:])]
    assert bool(changed & set(trained)) == (first < len(blocks))
