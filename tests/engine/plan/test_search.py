"""What the search chooses, on networks small enough for a unit test; and the issue's targets at batch 128."""

from dataclasses import replace
from functools import partial

import pytest
from torch import nn

import archs
from engine.config import OptimConfig
from engine.config.byte_sizes import GIB, enough
from engine.plan.memory.cost import NOMINAL
from engine.plan.memory.cuda import MIB, workspace_cap
from engine.plan.memory.loader import loader_bytes
from engine.plan.memory.sharding import PREFETCH_BUCKET, REDUCE_BUCKET, Parameters, shard
from engine.plan.memory.trace import Category
from engine.plan.search import Search
from engine.plan.workload import Workload
from engine.step.recompute import Policy


class Chain(nn.Module):
    """Six equal blocks, with or without BatchNorm; activations outweigh parameters by far."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers = [
            nn.Sequential(
                nn.Conv2d(3 if index == 0 else 8, 8, 3, padding=1),
                nn.BatchNorm2d(8) if norm else nn.Identity(),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.Sigmoid(),
            )
            for index in range(6)
        ]
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(8, 10)

    def blocks(self):
        yield from self.stages

    def forward(self, images):
        return self.head(self.stages(images).mean(dim=(2, 3)))


def workload(norm: bool = True, batch: int = 48, **more) -> Workload:
    build = partial(Chain, norm)
    return Workload("chain", build, 32, 10, batch, OptimConfig(batch_size=batch), cuda=False, **more)


@pytest.fixture(scope="module")
def search():
    return Search(workload(), ["fp32"])


def plain_peak(search: Search) -> int:
    return search.candidate("fp32", Policy(), 1, GIB).peak


def test_nothing_is_changed_where_all_fits(search):
    result = search.run(plain_peak(search))
    assert result.chosen.plain and not result.chosen.changes and len(result.candidates) == 1


def test_a_little_less_recomputes_the_first_blocks(search):
    chosen = search.run(int(0.9 * plain_peak(search))).chosen
    assert chosen.policy.kind == "first" and chosen.accumulation == 1
    assert chosen.peak <= 0.9 * plain_peak(search)
    # the fewest: one block less would not fit
    fewer = Policy("first", chosen.policy.segments[:-1])
    assert search.candidate("fp32", fewer, 1, GIB).peak > 0.9 * plain_peak(search)


def test_much_less_splits_the_batch_and_says_so(search):
    budget = int(0.2 * plain_peak(search))
    result = search.run(budget)
    chosen = result.chosen
    assert chosen.peak <= budget and chosen.accumulation > 1 and not chosen.policy.offload
    assert any(f"micro-batches of {chosen.micro} images" in change for change in chosen.changes)
    assert chosen.micro * chosen.accumulation >= 48 > chosen.micro * (chosen.accumulation - 1)
    whole = [one for one in result.candidates if one.accumulation == 1 and not one.policy.offload]
    assert whole and all(one.peak > budget for one in whole)


def test_the_cheapest_that_fits_is_taken(search):
    for share in (0.9, 0.6, 0.4):
        budget = int(share * plain_peak(search))
        result = search.run(budget, every=True)
        fitting = [one for one in result.candidates if one.peak <= budget and one.tier == 0]
        assert not fitting or result.chosen.seconds == min(one.seconds for one in fitting)


def test_small_micro_batches_come_after_offload(search):
    """BatchNorm over fewer than 16 images is worse than waiting for the host."""
    result = search.run(plain_peak(search) // 12, every=True)
    assert result.chosen is None or result.chosen.policy.offload or result.chosen.micro >= 16


def test_a_compiled_run_is_planned_by_its_own_graphs():
    search = Search(workload(), ["fp32"], compiled=True)
    eager, compiled = (search.candidate("fp32", policy, 1, GIB) for policy in (Policy(), Policy(partition=1.0)))
    assert compiled.peak < eager.peak
    result = search.run((compiled.peak + eager.peak) // 2)
    assert result.chosen.policy == Policy(partition=1.0) and result.chosen.accumulation == 1
    assert not any(one.policy.segments for one in result.candidates)  # nothing else had to be looked at


class Wide(nn.Sequential):
    """Weights that are no small part of what half a partition keeps, which therefore depends on the batch."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 64, 3, padding=1)]
        for _ in range(4):
            layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(("size", "batch"), [(64, 128), (64, 2), (512, 4)])
def test_the_budget_that_is_named_is_the_smallest_that_does(size, batch):
    """Also where it allows convolutions a larger workspace than the budget asked for, or the share is a few images."""
    build = partial(archs.build, "vgg11", 10, image_size=size)
    search = Search(Workload("vgg11", build, size, 10, batch, OptimConfig(batch_size=batch)), ["bf16"])
    least = search.run(GIB).least
    assert least is not None and search.run(enough(least.peak)).chosen is not None
    assert search.run(enough(least.peak) - GIB // 16).chosen is None


def test_a_partition_that_is_chosen_is_recorded_at_its_very_micro_batch():
    """The recording for all sizes says a fifth too little here: what fits by it is looked at again."""
    load = replace(workload(batch=128), build=Wide, image_size=16)
    half = Policy(partition=0.5)
    guess, whole, parts = (
        Search(load, ["bf16"], ("none",), compiled=True).candidate("bf16", half, 1, GIB),
        *(exact(load, half, count) for count in (1, 2)),
    )
    assert guess.peak < 0.9 * whole.peak
    search = Search(load, ["bf16"], ("none",), offload=False, compiled=True)
    for budget, expected in (((guess.peak + whole.peak) // 2, parts), (whole.peak, whole)):
        result = search.run(budget)
        assert result.chosen is not None
        chosen = [one for one in result.candidates if one.policy == half and one.peak <= budget]
        assert [(one.accumulation, one.peak) for one in chosen] == [(expected.accumulation, expected.peak)]


def exact(load: Workload, policy: Policy, count: int):
    """A candidate by a recording of its micro-batch alone."""
    search = Search(load, ["bf16"])
    search.trace("bf16", policy, only=load.share // count)
    return search.candidate("bf16", policy, count, GIB)


def test_without_batchnorm_micro_batches_change_nothing():
    search = Search(replace(workload(norm=False), image_size=256), ["fp32"])  # large enough not to be all launches
    result = search.run(plain_peak(search) // 2)
    assert result.chosen.changes == () and result.chosen.accumulation > 1
    assert result.chosen.policy == Policy()  # cheaper than running anything twice


def test_more_gpus_take_smaller_shares_and_synchronised_norms_keep_the_function():
    alone = Search(workload(batch=48), ["fp32"])
    two = Search(workload(batch=48, ranks=2), ["fp32"])
    four = Search(workload(batch=48, ranks=4, sync_bn=True), ["fp32"])
    assert two.run(2 * GIB).chosen.micro == 24 and two.run(2 * GIB).chosen.changes
    chosen = four.run(2 * GIB).chosen
    assert chosen.micro == 12 and chosen.changes == ()
    activations = [
        sum(one.predicted.get(category, 0) for category in (Category.SAVED, Category.TRANSIENT))
        for one in (alone.candidate("fp32", Policy(), 1, GIB), two.candidate("fp32", Policy(), 1, GIB))
    ]
    assert activations[1] == pytest.approx(activations[0] / 2, rel=0.05)


def test_synchronised_norms_have_channels_of_their_own():
    """NCCL's, for a group beside the gradients'; none of it is in torch's allocator."""
    norms = {
        sync_bn: Search(replace(workload(ranks=2, sync_bn=sync_bn), cuda=True), ["fp32"]) for sync_bn in (False, True)
    }
    plain, synchronised = (norms[sync_bn].candidate("fp32", Policy(), 1, GIB) for sync_bn in (False, True))
    nccl = norms[False].workload.device.nccl
    assert plain.predicted[Category.COMMUNICATION] == nccl
    assert synchronised.peak == plain.peak + nccl and synchronised.allocated == plain.allocated


def test_the_least_is_said_where_nothing_fits(search):
    result = search.run(100_000)
    assert result.chosen is None and result.least.micro == 2  # BatchNorm may not take one
    assert result.least.peak > 100_000
    would = search.run(result.least.peak)
    assert would.chosen is not None and would.chosen.peak <= result.least.peak


def test_prediction_is_the_allocators_peak_of_a_real_step():
    """The chosen plan's bytes on a CPU: what the tracker counts of the real network under the same policy."""
    from engine.plan.memory.simulate import Step, run_step
    from engine.plan.memory.tracker import Tracker

    search = Search(workload(), ["fp32"])
    chosen = search.run(int(0.7 * plain_peak(search))).chosen
    assert chosen.policy.segments
    model = Chain(True).train()
    step = Step(32, 10, "fp32", OptimConfig(batch_size=48), chosen.policy, cuda=False)
    assert chosen.peak == run_step(model, step, 48, Tracker()).peak(48)


# --- sizes -----------------------------------------------------------------------------------------------------


def test_a_workspace_is_capped_by_the_card():
    assert workspace_cap(8 * GIB) == 256 * MIB and workspace_cap(16 * GIB) == 512 * MIB
    assert workspace_cap(GIB) == 128 * MIB and workspace_cap(80 * GIB) == 1024 * MIB


def test_the_loader_holds_its_queue():
    one = loader_bytes(128, 224, 1, half=False)
    assert loader_bytes(128, 224, 2, half=False) - one == 128 * 224 * 224 * 3 * 4
    assert loader_bytes(64, 224, 1, half=False) == one // 2
    assert loader_bytes(128, 224, 1, half=True) < one


PARAMETERS = Parameters(total=10_000_000, largest=2_000_000, small=500_000, trained=10_000_000, states=2)


@pytest.mark.parametrize("more", [{}, {"ranks": 2, "zero_stage": 2}], ids=["alone", "ZeRO-2"])
def test_an_average_of_the_weights_is_whole_on_every_gpu(more):
    plain, averaged = (
        Search(replace(workload(**more), optim=OptimConfig(ema=decay)), ["fp32"]).candidate("fp32", Policy(), 1, GIB)
        for decay in (0.0, 0.999)
    )
    tensors = Chain(norm=True).state_dict().values()
    copy = sum(tensor.nbytes for tensor in tensors)
    assert Category.AVERAGE not in plain.predicted and averaged.predicted[Category.AVERAGE] == copy
    assert copy <= averaged.peak - plain.peak < 1.1 * copy + 512 * len(tensors)
    assert averaged.seconds > plain.seconds


@pytest.mark.parametrize("more", [{}, {"ranks": 2, "sync_bn": True}], ids=["alone", "SyncBatchNorm"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_two_passes_take_twice_the_time_and_a_copy(accumulation, more):
    """All but the optimizer's step and the way up and back, which are once a step."""
    plain, sharp = (
        Search(replace(workload(**more), optim=OptimConfig(sam=rho)), ["fp32"]).candidate(
            "fp32", Policy(), accumulation, GIB
        )
        for rho in (0.0, 0.05)
    )
    tensors = Chain(norm=True).state_dict().values()
    copy = sum(tensor.nbytes for tensor in tensors)
    assert Category.KEPT not in plain.predicted and sharp.predicted[Category.KEPT] == copy
    assert copy <= sharp.peak - plain.peak < 1.1 * copy + 512 * len(tensors)
    few = 20 * NOMINAL.launch  # operators on lists of tensors, and on scalars
    assert 2 * plain.seconds - few < sharp.seconds < 2 * plain.seconds + few


def test_zero_shards_what_its_stage_says():
    """Against the paper's table: Adam's states, gradients, parameters go one after the other (arXiv:1910.02054)."""
    whole = 4 * PARAMETERS.total
    stages = [shard(PARAMETERS, 4, stage, False).static for stage in range(4)]
    assert stages[0][Category.OPTIMIZER] == 2 * whole and stages[0][Category.COMMUNICATION] == 0
    assert [stage[Category.OPTIMIZER] for stage in stages[1:]] == [3 * whole // 4] * 3  # with the fp32 copy
    assert [stage[Category.GRADIENTS] for stage in stages] == [whole, whole, whole // 4, whole // 4]
    assert stages[2][Category.PARAMETERS] == whole
    assert stages[3][Category.PARAMETERS] == 4 * 500_000 + (whole - 4 * 500_000) // 4
    assert stages[2][Category.COMMUNICATION] == 2 * 4 * REDUCE_BUCKET
    gathered = stages[3][Category.COMMUNICATION] - stages[2][Category.COMMUNICATION]
    assert gathered == min(whole, 4 * (PREFETCH_BUCKET + PARAMETERS.largest))
    assert shard(PARAMETERS, 4, 2, True).static[Category.OPTIMIZER] == 0
    plain, halved = shard(PARAMETERS, 4, 0, False), shard(PARAMETERS, 4, 0, False, halved=True)
    assert halved.traffic == plain.traffic // 2
    assert halved.static[Category.COMMUNICATION] == plain.static[Category.GRADIENTS] // 2
    assert shard(PARAMETERS, 1, 0, False).traffic == 0
    assert shard(PARAMETERS, 4, 3, False).traffic > shard(PARAMETERS, 4, 2, False).traffic


# --- the targets ---------------------------------------------------------------------------------------


def target(arch: str, gib: int, ranks: int = 1):
    build = partial(archs.build, arch, 1000, image_size=224)
    load = Workload(arch, build, 224, 1000, 128, OptimConfig(batch_size=128), ranks=ranks, sync_bn=ranks > 1)
    return Search(load, ["bf16"]).run(gib * GIB).chosen


@pytest.mark.parametrize(
    "arch", ["resnext50", *(pytest.param(a, marks=pytest.mark.slow) for a in ("inceptionv3", "darknet53"))]
)
def test_the_papers_networks_fit_8_gib_exactly(arch):
    chosen = target(arch, 8)
    assert chosen.accumulation == 1 and chosen.changes == () and not chosen.policy.offload


@pytest.mark.slow
@pytest.mark.parametrize("gib", [8, 12, 16])
@pytest.mark.parametrize("arch", ["resnext29_2x64d", "inceptionv3_fullres"])
def test_the_repositorys_networks_fit_in_micro_batches(arch, gib):
    chosen = target(arch, gib)
    assert chosen.accumulation > 1 and chosen.micro >= 16 and "micro-batches" in chosen.changes[0]


@pytest.mark.parametrize("arch", ["resnext29_2x64d", pytest.param("inceptionv3_fullres", marks=pytest.mark.slow)])
def test_the_repositorys_networks_are_exact_on_four_gpus(arch):
    chosen = target(arch, 16, ranks=4)
    assert chosen.accumulation == 1 and chosen.micro == 32 and chosen.changes == ()


@pytest.fixture(scope="module")
def on_a_gpu():
    return Search(replace(workload(norm=False), cuda=True), ["fp32"])


def test_parts_are_the_largest_that_fit(on_a_gpu):
    """As if every number of micro-batches had been replayed: only those next to where it changes are."""
    cap, counts = workspace_cap(GIB), on_a_gpu.accumulations()
    peaks = {n: on_a_gpu.timeline("fp32", Policy(), -(-48 // n), n, cap).peak for n in counts}
    for budget in [one + more for one in peaks.values() for more in (-1, 0)]:
        first = next((n for n in counts if peaks[n] <= budget), None)
        found = on_a_gpu.split("fp32", Policy(), budget, cap)
        assert (found and found.accumulation) == first


def test_the_least_is_the_least_of_all_that_are_replayed(on_a_gpu):
    cap = workspace_cap(GIB)
    least = on_a_gpu.least(cap)
    policies = [*on_a_gpu.policies("fp32"), *(replace(one, offload=True) for one in on_a_gpu.policies("fp32", True))]
    counts = (1, on_a_gpu.accumulations()[-1])
    assert least.peak == min(on_a_gpu.candidate("fp32", one, n, cap).peak for one in policies for n in counts)
