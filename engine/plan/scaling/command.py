"""What `launch/plan.py --interconnect` prints: a table of projected steps, and all that was assumed."""

from __future__ import annotations

from engine.config import require
from engine.config.pixels.image_size import px
from engine.plan.memory.cost import NOMINAL
from engine.plan.memory.fake import on_meta
from engine.plan.request import PlanConfig, builder, planned_hardware
from engine.plan.run_plan import search_of, workload_of
from engine.plan.scaling.network import CLUSTERS
from engine.plan.scaling.projection import BACKWARD, Projected, buckets, gpu_counts, project
from engine.runs.text_table import text_table
from engine.step.plan import choose_precision
from engine.step.recompute import Policy


def run_projection(options: PlanConfig) -> int:
    """Print it; returns the exit code. Raises ConfigError for what cannot be meant."""
    require(not options.matrix, "--matrix and --interconnect are two questions; ask one")
    require(options.step_ms >= 0, f"--step-ms must be 0 (modelled) or more, not {options.step_ms}")
    cluster, counts = CLUSTERS[options.interconnect], gpu_counts(str(options.gpus))
    config = options.run_config()
    build = builder(config, options.num_classes)
    sizes = [4 * one.numel() for one in on_meta(build).parameters() if one.requires_grad]
    precision = choose_precision(config.precision.precision, planned_hardware())
    if options.step_ms:
        passes, source = options.step_ms / 1000, "as given, measured on one GPU"
    else:
        workload = workload_of(config, build, options.num_classes)
        passes = search_of(config, workload, precision).candidate(precision, Policy(), 1, 0).seconds
        source = (
            f"modelled: a roofline of {NOMINAL.half / 1e12:g} TFLOP/s and {NOMINAL.memory / 1e12:g} TB/s on a nominal "
            "card; --step-ms takes a measured one"
        )
    rows = project(passes, sizes, counts, cluster)
    parts = buckets(sizes)
    each = config.optim.batch_size
    print(f"{config.model.arch}, {each} images a GPU, {px(config.data.side)}, {precision}: every figure is PROJECTED")
    print(table(rows, each))
    print(f"passes      {passes * 1e3:.1f} ms ({source}); the backward one is {BACKWARD:.0%} of them")
    print(f"gradients   {sum(sizes) / 2**20:.1f} MiB in fp32, in {len(parts)} buckets that follow each other")
    print(f"network     {cluster.assumed}; α-β model, ring or tree, whichever is faster")
    print("left out    other traffic, GPUs that differ, how the images come in, passes slowed down by the exchange")
    return 0


def table(rows: list[Projected], each: int) -> str:
    """The rows as text; `each`: images a GPU."""
    head = ("GPUs", "batch", "step ms", "not hidden ms", "images/s", "efficiency")
    lines = [
        (
            str(row.gpus),
            f"{row.gpus * each:,}",
            f"{row.seconds * 1e3:.1f}",
            f"{row.exposed * 1e3:.1f}",
            f"{row.gpus * each / row.seconds:,.0f}",
            f"{row.efficiency:.1%}",
        )
        for row in rows
    ]
    return text_table([f"projected {name}" if name in head[2:] else name for name in head], lines, left=0)
