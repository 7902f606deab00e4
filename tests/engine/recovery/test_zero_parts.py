"""What ZeRO cuts, written by one number of ranks under one stage, and read by another one under another."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def network() -> nn.Module:
    """37 + 3 + 6 numbers in odd shapes, and one buffer: no number of ranks divides them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 2, bias=False))
    model.register_parameter("alone", nn.Parameter(torch.randn(37)))
    model.register_buffer("seen", torch.arange(5.0))
    return model


def one_rank(rank: int, ranks: int, stage: int, port: int, read: str, written: str) -> None:
    """An engine that reads parts, or takes a step, and writes its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_LOG_LEVEL": "error"}
    torch.set_num_threads(1)
    import deepspeed
    import deepspeed.ops

    from engine.recovery.shards import Shards, write_parts
    from engine.recovery.zero_parts import ZeroParts

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = network()
    if read:
        for parameter in model.parameters():
            parameter.data.zero_()
        model.seen.zero_()
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
    settings |= {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10}}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=True, model_parameters=model.parameters()
    )
    if read:
        ZeroParts(engine).load(Shards(Path(read)).whole)
    else:
        alone = dict(engine.module.named_parameters())["alone"]
        engine.backward(engine(torch.ones(1, 12)).square().sum() + (alone * 0).sum())
        engine.step()
    write_parts(Path(written), rank, ranks, ZeroParts(engine).parts())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def spread(ranks: int, stage: int, port: int, read: Path | str, written: Path) -> dict[str, torch.Tensor]:
    """Run it; returns all whole tensors that were written."""
    from engine.recovery.shards import Shards

    torch.multiprocessing.start_processes(
        one_rank, (ranks, stage, port, str(read), str(written)), nprocs=ranks, start_method="spawn"
    )
    found = Shards(written)
    return {name: found.whole(name) for name in found.names()}


def test_stages_and_numbers_of_ranks_read_each_other(tmp_path, free_port):
    first = spread(2, 1, free_port, "", tmp_path / "first")
    assert set(first) == {"model.seen"} | {
        f"{kind}{name}{state}"
        for name in ("alone", "0.weight", "0.bias", "1.weight")
        for kind, state in [("model.", ""), *(("optimizer.", f".{key}") for key in ("step", "exp_avg", "exp_avg_sq"))]
    }
    assert first["model.0.weight"].shape == first["optimizer.0.weight.exp_avg"].shape == (3, 12)
    assert first["optimizer.alone.step"] == 1 and first["optimizer.0.weight.exp_avg"].any()
    assert not torch.equal(first["model.0.weight"], network()[0].weight), "a step was taken"
    last = spread(3, 3, free_port, tmp_path / "first", tmp_path / "second")
    assert set(last) == set(first)
    for name, tensor in first.items():
        torch.testing.assert_close(last[name], tensor, rtol=0, atol=0, msg=name)
