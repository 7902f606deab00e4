"""plan.json in words: what was planned, and nothing of what was not."""

from __future__ import annotations

from typing import Any

from engine.runs.wording import gib, value_of, words

SHOWN_ELSEWHERE = {
    *("device", "global_batch_size", "micro_batch_size", "accumulation", "ranks", "loss_scaling", "policy", "fsdp"),
    *("tf32", "normalised", "changes", "offload_optimizer", "predicted_allocated_bytes", "predicted_reserved_bytes"),
    *("relative_cost", "predicted_bytes"),
}
"""Fields that are part of another's line, or of the notes at the head of the page."""
RECOMPUTE = {
    "none": "none: every activation is kept",
    "block": "every block's forward pass runs again in the backward pass",
    "compiled": "what torch.compile's partitioner decides",
}


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of a plan as plan.json holds it, of this version or another; fields that this one does not know
    come last, under their own names."""
    rows = [(label, say(plan)) for label, (_, say) in LINES.items()]
    known = SHOWN_ELSEWHERE | {field for field, _ in LINES.values()}
    rows += [(words(key), value_of(key, value)) for key, value in plan.items() if key not in known]
    return [(label, text) for label, text in rows if text]


def _device(plan: dict[str, Any]) -> str:
    return str(plan.get("device_name") or plan.get("device") or "")


def _precision(plan: dict[str, Any]) -> str:
    precision = plan.get("precision") or ""
    rounded = precision == "fp32" and plan.get("device") == "cuda" and plan.get("tf32") == "on"
    scaled = " with loss scaling" if plan.get("loss_scaling") else ""
    return f"{precision}{scaled}{', products in TF32' if rounded else ''}"


def _batch(plan: dict[str, Any]) -> str:
    whole = plan.get("global_batch_size")
    if not whole:
        return ""
    ranks, accumulation = plan.get("ranks") or 1, plan.get("accumulation") or 1
    if ranks == accumulation == 1:
        return f"{whole} images at once"
    parts = [f"{plan.get('micro_batch_size')} images"]
    parts += [f"{accumulation} micro-batches"] if accumulation > 1 else []
    parts += [f"{ranks} ranks"] if ranks > 1 else []
    return f"{whole} images: {' × '.join(parts)}"


def _recompute(plan: dict[str, Any]) -> str:
    text = str(plan.get("recompute") or "")
    return RECOMPUTE.get(text, text)


def _compile(plan: dict[str, Any]) -> str:
    return "on" if plan.get("compile") else ""


def _graph(plan: dict[str, Any]) -> str:
    return "a whole step is recorded and replayed" if plan.get("cuda_graph") else ""


def _layout(plan: dict[str, Any]) -> str:
    return {True: "channels last", False: "channels first"}.get(plan.get("channels_last"), "")  # type: ignore[arg-type]


def _sharding(plan: dict[str, Any]) -> str:
    if plan.get("fsdp"):
        return "FSDP2"
    if not plan.get("zero_stage"):
        return ""
    return f"ZeRO-{plan['zero_stage']}" + (", optimizer in host memory" if plan.get("offload_optimizer") else "")


def _norms(plan: dict[str, Any]) -> str:
    return "statistics of all ranks together" if plan.get("sync_bn") else ""


def _exchange(plan: dict[str, Any]) -> str:
    return "sent in bf16" if plan.get("gradient_compression") == "bf16" else ""


def _bytes(field: str):
    return lambda plan: gib(plan[field]) if plan.get(field) else ""


def _peak(plan: dict[str, Any]) -> str:
    if not plan.get("predicted_peak_bytes"):
        return ""
    tensors, reserved = plan.get("predicted_allocated_bytes"), plan.get("predicted_reserved_bytes")
    parts = [f"{gib(tensors)} of it in tensors"] if tensors else []
    parts += [f"{gib(reserved)} held by torch's allocator"] if reserved else []
    return ", ".join([gib(plan["predicted_peak_bytes"]), *parts])


def _frozen(plan: dict[str, Any]) -> str:
    return str(plan.get("frozen") or "")


def _correction(plan: dict[str, Any]) -> str:
    return str(plan.get("correction") or "")


def _parts(plan: dict[str, Any]) -> str:
    parts = sorted((plan.get("predicted_bytes") or {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in parts if size)


def _cost(plan: dict[str, Any]) -> str:
    return f"{plan['relative_cost']:.2f} × the cheapest way" if plan.get("relative_cost") else ""


LINES = {
    "device": ("device_name", _device),
    "precision": ("precision", _precision),
    "batch": ("global_batch_size", _batch),
    "recompute": ("recompute", _recompute),
    "torch.compile": ("compile", _compile),
    "CUDA graph": ("cuda_graph", _graph),
    "memory layout": ("channels_last", _layout),
    "sharding": ("zero_stage", _sharding),
    "BatchNorm": ("sync_bn", _norms),
    "gradients over GPUs": ("gradient_compression", _exchange),
    "not trained": ("frozen", _frozen),
    "weights": ("parameter_bytes", _bytes("parameter_bytes")),
    "gradients": ("gradient_bytes", _bytes("gradient_bytes")),
    "optimizer's state": ("optimizer_bytes", _bytes("optimizer_bytes")),
    "planned for": ("budget_bytes", _bytes("budget_bytes")),
    "predicted peak": ("predicted_peak_bytes", _peak),
    "at the peak": ("predicted_bytes", _parts),
    "corrected by earlier runs": ("correction", _correction),
    "a convolution's workspace at most": ("workspace_cap_bytes", _bytes("workspace_cap_bytes")),
    "predicted time": ("relative_cost", _cost),
}
"""Lines of the table in their order: the field that each is about and what it says, empty where nothing was planned."""
