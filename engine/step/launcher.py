"""What launchers leave in the environment: completed where it can be, refused where it contradicts the run's own plan.

accelerate reads a person's own default_config.yaml before it starts the run, which may ask for things that this
project decides itself (compilation, precision) or does not have (Megatron). Ours wins, and that is said.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from datetime import timedelta

from engine.config import ConfigError, require

LOCAL = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")
"""Variables in which launchers say a process's place on its machine."""
SHARDING = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
FOREIGN = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "its parallelism configuration",
}

logger = logging.getLogger("hcr")


def refuse_odd_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Raise ConfigError for rank variables of which each process would make another sense.

    Without it, each process of a launch that lacks one of them would train alone, into one folder.
    """
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE", *LOCAL[:1]) if name in environment}
    for name, text in found.items():
        require(text.isdecimal(), f"the launcher's {name} is {text!r}, and a number is needed")
    if "WORLD_SIZE" not in found:
        require(
            int(found.get("RANK", 0)) == 0,
            f"the launcher set RANK={found.get('RANK')} and no WORLD_SIZE: set both, or start with torchrun",
        )
        return
    ranks = int(found["WORLD_SIZE"])
    require(ranks >= 1, f"the launcher's WORLD_SIZE is {ranks}; it must be 1 or more")
    alone = ranks == 1
    require("RANK" in found or alone, f"the launcher set WORLD_SIZE={ranks} and no RANK: set both, or use torchrun")
    rank = int(found.get("RANK", 0))
    require(rank < ranks, f"the launcher's RANK is {rank}, of WORLD_SIZE {ranks}: ranks count from 0")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    require(
        alone or not missing,
        f"the launcher set RANK and WORLD_SIZE={ranks}, but not {' and '.join(missing)}: ranks cannot find each other",
    )
    port = environment.get("MASTER_PORT", "")
    require(
        alone or (port.isdecimal() and 1 <= int(port) <= 65535),
        f"the launcher's MASTER_PORT is {port!r}, and a number from 1 to 65535 is needed",
    )


def launched_ranks(environment: MutableMapping[str, str] = os.environ) -> int:
    """Processes of this launch, once `refuse_odd_ranks` had nothing against it."""
    return int(environment.get("WORLD_SIZE", "1"))


def complete_local_rank(devices: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set LOCAL_RANK, without which accelerate starts no group, where a launcher set RANK and WORLD_SIZE alone.

    Kubernetes' PyTorchJob does so. It is what another variable says, else the rank over this machine's `devices`.
    """
    if "LOCAL_RANK" in environment or int(environment.get("WORLD_SIZE", "1")) == 1:
        return
    said = next((environment[name] for name in LOCAL if environment.get(name, "").isdecimal()), None)
    derived = int(environment.get("RANK", "0")) % devices if devices else 0
    environment["LOCAL_RANK"] = said or str(derived)


def meet_again(cuda: bool, timeout: timedelta, environment: MutableMapping[str, str] = os.environ) -> None:
    """Where torchrun started the ranks anew, set up their exchange under a name of this restart.

    Its store outlives a restart and still has the addresses of the processes that were: gloo's ranks would try to reach
    those, and use up their restarts in it (connectFullMesh). accelerate takes the group that is there.
    """
    import torch.distributed as dist

    restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ranks = int(environment.get("WORLD_SIZE", "1"))
    if not restarts.isdecimal() or not int(restarts) or not served or ranks == 1 or dist.is_initialized():
        return
    store = dist.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"hcr/restart/{restarts}", store),
        rank=int(environment["RANK"]),
        world_size=ranks,
        timeout=timeout,
    )


def refuse_foreign(environment: MutableMapping[str, str] = os.environ) -> None:
    """Raise ConfigError for what accelerate's configuration asks for and this project has not."""
    for name, what in FOREIGN.items():
        if environment.get(name, "false").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate's configuration asks for {what} ({name}), which does not train here; launch with "
                "--config_file configs/accelerate/deepspeed_zero2.yaml, or with --multi_gpu"
            )
    both = [name for name in SHARDING if environment.get(name, "false").lower() in ("true", "1")]
    require(len(both) < 2, f"the launcher asks for both DeepSpeed and FSDP ({' and '.join(SHARDING)}): choose one")


def say_unused(devices: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Say where a launcher started fewer processes on this machine than it has `devices`: their number is written in
    its configuration, or a person's own."""
    if "ACCELERATE_MIXED_PRECISION" not in environment and "LOCAL_WORLD_SIZE" not in environment:
        return
    started = environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", "1"))
    if started.isdecimal() and 0 < int(started) < devices:
        machines = int(environment.get("WORLD_SIZE", "1")) // int(started) or 1
        logger.info(
            "note: %s of this machine's %d GPUs train; --num_processes %d takes all (torchrun: --nproc_per_node %d)",
            started,
            devices,
            devices * machines,
            devices,
        )


def overrule(precision: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Take out of the environment what accelerate would do beside the plan, and say so once."""
    asked = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    for name in [name for name in environment if name.startswith("ACCELERATE_DYNAMO_")]:
        del environment[name]
    if asked.lower() not in ("", "no"):
        logger.info("note: accelerate's configuration asks for torch.compile (%s); here --compile decides", asked)
    steps = environment.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", ""):
        logger.info("note: accelerate's configuration accumulates %s micro-batches; here the plan decides", steps)
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed not in ("no", "fp32", precision):
        logger.info("note: accelerate's configuration asks for %s; here --precision decides: %s", mixed, precision)
