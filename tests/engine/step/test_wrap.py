"""What the launcher's environment means, and how a model is wrapped."""

import dataclasses
import json
import os
import warnings
from types import SimpleNamespace

import pytest
import torch

from engine.config import ConfigError, ModelConfig, OptimConfig, ParallelConfig, PrecisionConfig, RunConfig
from engine.step.ddp import DdpOptions, ignore_strides_of_one
from engine.step.optim import build_optimizer
from engine.step.plan import Hardware, make_plan
from engine.step.wrap import Launch, build_accelerator, cpu_threads, deepspeed_configuration, prepare_device, wrap

ALONE = Launch(0, 0, 1, None)


@pytest.fixture
def bare(monkeypatch):
    """No launcher, no thread count; returns the monkeypatch."""
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    return monkeypatch


def test_threads_without_a_launcher(bare):
    assert cpu_threads(0, ALONE) == 8
    bare.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads(0, ALONE) == 1
    assert cpu_threads(3, ALONE) == 3


def test_a_launchers_single_thread_is_not_taken_for_a_wish(bare):
    bare.setenv("OMP_NUM_THREADS", "1")
    bare.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert cpu_threads(0, ALONE) == 8
    bare.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu_threads(0, Launch(0, 0, 2, None)) == 4
    bare.setenv("OMP_NUM_THREADS", "2")
    assert cpu_threads(0, Launch(0, 0, 2, None)) == 2
    assert cpu_threads(1, Launch(0, 0, 2, None)) == 1


def test_a_graph_for_every_image_size(reset_accelerator, monkeypatch):
    """12 sizes, each trained compiled: Dynamo's own limit of 8 graphs would leave the last ones eager."""
    graphs = []

    def compile_graph(graph, inputs, **options):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_graph)
    torch._dynamo.reset()
    config = RunConfig(model=ModelConfig(compile="on"), precision=PrecisionConfig("fp32"))
    model = torch.nn.Conv2d(3, 4, 3)
    plan = make_plan(config, model, Hardware("cpu", "CPU"))
    assert plan.compile
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch._dynamo.config.patch(recompile_limit=8):
        model, _ = wrap(model, optimizer, plan, build_accelerator(plan, ALONE, config.optim), image_sizes=12)
        for size in range(8, 20):
            model(torch.zeros(2, 3, size, size)).sum().backward()
    assert len(graphs) == 12


def test_deepspeed_without_its_json_says_how_to_launch(bare):
    bare.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    bare.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "nowhere.json")
    with pytest.raises(ConfigError, match=r"nowhere\.json.*deepspeed_zero2\.yaml"):
        Launch.detect()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_configurations_keep_fp32_parameters(bare, root, stage):
    """bf16 comes by autocast: DeepSpeed's own bf16 section would cast BatchNorm too (DeepSpeed issue 3979)."""
    bare.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    bare.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(root / "configs" / "deepspeed" / f"zero{stage}.json"))
    launch = Launch.detect()
    assert launch.zero_stage == stage
    plan = make_plan(RunConfig(), torch.nn.Linear(2, 2), Hardware("cpu", "CPU", native_bf16=True), 2, stage)
    configuration = deepspeed_configuration(launch, plan, OptimConfig(clip_norm=0.5))
    autocast = configuration["torch_autocast"]
    assert autocast == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert configuration["train_micro_batch_size_per_gpu"] == 64
    assert configuration["gradient_clipping"] == 0.5
    assert "bf16" not in configuration and "fp16" not in configuration
    assert configuration["communication_data_type"] == "fp32"
    json.dumps(configuration)


def test_deepspeed_sends_gradients_in_what_was_asked_for():
    """Under autocast by the module's kind, BatchNorm's in fp32; without it all in one type. fp16 has no bf16."""
    launch, halved = Launch(0, 0, 2, {"zero_optimization": {"stage": 2}}), ParallelConfig(gradient_compression="bf16")

    def configuration(precision: str, hardware: Hardware) -> dict:
        config = RunConfig(precision=PrecisionConfig(precision), parallel=halved)
        plan = make_plan(config, torch.nn.Linear(2, 2), hardware, 2, 2)
        assert "gradients sent in bf16" in plan.describe()
        return deepspeed_configuration(launch, plan, OptimConfig())

    modules = configuration("bf16", Hardware("cpu", "CPU"))["torch_autocast"]["lower_precision_safe_modules"]
    assert modules == ["torch.nn.Conv2d", "torch.nn.Linear"]
    plain = configuration("fp32", Hardware("cpu", "CPU"))
    assert plain["communication_data_type"] == "bf16" and "torch_autocast" not in plain
    with pytest.raises(ConfigError, match="does not go with --precision fp16 under DeepSpeed"):
        configuration("fp16", Hardware("cuda", "V100", (7, 0)))


def test_a_plan_is_put_on_the_model(reset_accelerator, monkeypatch):
    """SyncNorm, recompute and the cap on workspaces; under the names that the plain model has."""
    from dataclasses import replace

    from engine.step.recompute import by_block
    from engine.step.sync_norm import SyncNorm

    for name in ("CUDNN_CONV_WSCAP_DBG", "HCR_CONV_WSCAP"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    import archs

    model = archs.build("resnet18", 4)
    names = list(model.state_dict())
    plan = make_plan(RunConfig(), model, Hardware("cpu", "CPU"))
    plan = replace(plan, sync_bn=True, policy=by_block(9), workspace_cap_bytes=256 << 20)
    accelerator = build_accelerator(plan, ALONE, OptimConfig())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped, _ = wrap(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, accelerator)
    finally:
        torch.distributed.destroy_process_group()
    assert list(wrapped.state_dict()) == names
    assert sum(isinstance(module, SyncNorm) for module in wrapped.modules()) == 20
    assert sum("forward" in module.__dict__ for module in wrapped.blocks()) == 9
    assert os.environ["CUDNN_CONV_WSCAP_DBG"] == "256"
    monkeypatch.setenv("CUDNN_CONV_WSCAP_DBG", "")  # so that it is put back


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_accelerate_configs_name_deepspeed_files_that_are_there(root, stage):
    from accelerate.commands.config.config_args import load_config_from_file

    path = root / "configs" / "accelerate" / f"deepspeed_zero{stage}.yaml"
    config = load_config_from_file(str(path))
    named = root / config.deepspeed_config["deepspeed_config_file"]
    assert json.loads(named.read_text())["zero_optimization"]["stage"] == stage


def test_deepspeed_sums_gradients_in_fp32(bare):
    """Its torch_autocast would put the compute dtype on the parameters of these modules."""
    from deepspeed.runtime.config import get_lower_precision_safe_modules
    from deepspeed.runtime.torch_autocast import get_all_comm_dtypes, init_autocast_params

    launch = Launch(0, 0, 2, {"zero_optimization": {"stage": 2}})
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2))
    plan = make_plan(RunConfig(), model, Hardware("cpu", "CPU", native_bf16=True), 2, 2)
    configuration = deepspeed_configuration(launch, plan, OptimConfig())
    engine = SimpleNamespace(module=model, zero_quantized_weights=lambda: False)
    bare.setattr("deepspeed.runtime.torch_autocast.TORCH_AUTOCAST_INITIALIZED", False)
    bare.setattr("deepspeed.runtime.torch_autocast.TORCH_AUTOCAST_DTYPE", None)
    init_autocast_params(engine, torch.bfloat16, get_lower_precision_safe_modules(configuration))
    assert get_all_comm_dtypes(model.parameters()) == {torch.float32}


def test_fp16_under_deepspeed_has_one_group_or_is_refused():
    launch = Launch(0, 0, 2, {"zero_optimization": {"stage": 2}})
    model = torch.nn.Linear(2, 2)
    plan = make_plan(RunConfig(), model, Hardware("cuda", "Tesla V100", (7, 0)), 2, 2)
    assert plan.precision == "fp16"
    with pytest.raises(ConfigError, match=r"--precision fp16 with --optim\.weight-decay.*one group"):
        deepspeed_configuration(launch, plan, OptimConfig(weight_decay=1e-4))
    assert deepspeed_configuration(launch, plan, OptimConfig())["torch_autocast"]["dtype"] == "float16"
    (group,) = build_optimizer(model, OptimConfig(), one_group=True).param_groups
    assert len(group["params"]) == 2 and group["weight_decay"] == 0
    assert len(build_optimizer(model, OptimConfig()).param_groups) == 2


@pytest.mark.parametrize(("section", "threads"), [({"offload_optimizer": {"device": "cpu"}}, 4), ({}, 1)])
def test_an_optimizer_in_host_memory_has_its_ranks_share_of_the_cores(bare, section, threads):
    """Launchers set OMP_NUM_THREADS=1, and the update would take one core."""
    bare.setenv("OMP_NUM_THREADS", "1")
    bare.setenv("LOCAL_WORLD_SIZE", "2")
    bare.setattr("engine.step.wrap.use_cuda", lambda: True)
    bare.setattr("torch.cuda.device_count", lambda: 2)
    bare.setattr("torch.cuda.set_device", lambda device: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prepare_device(Launch(0, 0, 2, {"zero_optimization": {"stage": 2} | section}))
        assert torch.get_num_threads() == threads
        assert os.environ["OMP_NUM_THREADS"] == str(threads), "DeepSpeed's own kernels read it when they load"
    finally:
        torch.set_num_threads(before)


def test_ddp_exchanges_nothing_in_the_forward_pass(free_port, bare):
    """With the arguments that accelerate hands on, and no warning."""
    bare.setenv("MASTER_ADDR", "127.0.0.1")
    bare.setenv("MASTER_PORT", str(free_port))
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 1), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ignore_strides_of_one()
            wrapped = torch.nn.parallel.DistributedDataParallel(model, **DdpOptions().to_kwargs())
            wrapped(images).square().sum().backward()
        assert not wrapped.broadcast_buffers and wrapped.gradient_as_bucket_view
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("asked", "products", "matmul", "convolutions"),
    [("on", "high", True, True), ("convolutions", "highest", False, True), ("off", "highest", False, False)],
)
def test_fp32_products_are_rounded_as_asked(monkeypatch, reset_accelerator, asked, products, matmul, convolutions):
    """By what torch reads when it multiplies, and the fused kernels when they are launched."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    config = RunConfig(precision=PrecisionConfig("fp32", asked), model=ModelConfig(compile="off"))
    model = torch.nn.Linear(3, 4)
    plan = make_plan(config, model, Hardware("cpu", "CPU"))
    factors = torch.randn(2, 64, 64)
    exact = factors[0] @ factors[1]
    try:
        wrap(model, build_optimizer(model, config.optim), plan, build_accelerator(plan, ALONE, config.optim))
        assert torch.get_float32_matmul_precision() == products
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (matmul, convolutions)
        assert torch.equal(factors[0] @ factors[1], exact)  # a CPU's products stay what they are
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_plan_says_that_fp32_is_rounded():
    config = RunConfig(precision=PrecisionConfig("fp32"))
    plan = make_plan(config, torch.nn.Linear(3, 4), Hardware("cuda", "a GPU", capability=(9, 0)))
    assert "fp32 in TF32" in plan.describe()
    assert "TF32" not in dataclasses.replace(plan, tf32="off").describe()
