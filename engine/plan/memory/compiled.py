"""A network as torch.compile runs it: AOTAutograd's joint graph, cut in two by its min-cut partitioner, on any tensors.

The partitioner decides what is kept for the backward pass, under `activation_memory_budget` of torch._functorch.config;
the graphs here are cut by it. What inductor's kernels fuse is modelled: a pointwise result that only fused operators
read is never written to memory. Everything else is, as an operator's result in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch import config as functorch
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import OpTypes, get_default_op_list, min_cut_rematerialization_partition

from engine.plan.memory.tracker import Tracker


class Compiled:
    """Calls `model` through its partitioned graphs.

    budget  activation_memory_budget: 1 keeps what the min-cut keeps, less recomputes more
    """

    def __init__(self, model: nn.Module, budget: float = 1.0) -> None:
        from torch._inductor.compile_fx import select_decomp_table  # seconds

        self.budget = budget
        self.tracker: Tracker | None = None
        """Told which results are not written; None while the graphs are made."""
        self.graphs: list[fx.GraphModule] = []
        """Forward, backward, once they were made."""
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._buffers = dict(model.named_buffers(remove_duplicate=False))

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Any:
            return torch.func.functional_call(model, {**parameters, **buffers}, (images,))

        self._function = aot_function(
            call,
            fw_compiler=self._compiler,
            bw_compiler=self._compiler,
            partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
            decompositions=select_decomp_table(),
            num_params_buffers=len(self._parameters) + len(self._buffers),
        )

    def __call__(self, images: Tensor) -> Any:
        with functorch.patch(activation_memory_budget=self.budget):
            return self._function(self._parameters, self._buffers, images)

    def _compiler(self, graph: fx.GraphModule, example: list[Tensor]) -> Callable[[list[Any]], Any]:
        self.graphs.append(graph)
        unwritten = unwritten_nodes(graph.graph)

        def run(arguments: list[Any]) -> Any:
            given = list(arguments)
            arguments.clear()  # the caller's references would keep what the graph is done with
            return Kernels(graph, unwritten, self.tracker).boxed_run(given)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


def unwritten_nodes(graph: fx.Graph, kinds: OpTypes | None = None) -> set[fx.Node]:
    """Pointwise results that only fused operators read: inductor keeps them in registers."""
    kinds = kinds or get_default_op_list()
    written: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        calls = node.op == "call_function"
        passes_on = calls and (kinds.is_view(node) or "getitem" in node.name) and node in written
        if node.op == "output" or passes_on or (calls and not kinds.is_fusible(node) and not kinds.is_view(node)):
            written.update(node.all_input_nodes)
    return {
        node for node in graph.nodes if node.op == "call_function" and kinds.is_fusible(node) and node not in written
    }


class Kernels(fx.Interpreter):
    """Runs a graph operator by operator, and tells a tracker which results are not there in a fused kernel."""

    def __init__(self, graph: fx.GraphModule, unwritten: set[fx.Node], tracker: Tracker | None) -> None:
        super().__init__(graph)
        self.unwritten, self.tracker = unwritten, tracker

    def run_node(self, node: fx.Node) -> Any:
        """One operator."""
        if self.tracker is None:
            return super().run_node(node)
        self.tracker.fused = node in self.unwritten
        try:
            return super().run_node(node)
        finally:
            self.tracker.fused = False
