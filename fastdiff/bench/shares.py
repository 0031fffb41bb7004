"""Which kernels take the time of a call, from torch.profiler."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

# The kind of a kernel by its name, the first that is found in it.
KINDS = (
    ("copy", r"memcpy|memset|copy_kernel|aten::copy_|aten::clone|aten::_to_copy"),
    ("attention", r"attention|attn|flash|fmha|sdpa"),
    ("convolution", r"conv|cudnn|fprop|winograd"),
    ("norm", r"norm|welford"),
    ("product", r"gemm|matmul|addb?mm|::b?mm|linear|mm_|_mm|cublas|cutlass|nvjet"),
    ("elementwise", r"elementwise|pointwise|triton_poi|silu|gelu|add|mul|cat|index"),
)
CALLS = 3
SHOWN = 12


def kind(name: str) -> str:
    """Of a kernel or an operator; "other" for names that say nothing."""
    return next((found for found, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def shares(call: Callable[[], object], device: torch.device | str = "cpu") -> dict[str, Any]:
    """{"seconds": of all kernels in a call, "kinds": {kind: share}, "kernels": the largest, each {"name", "kind",
    "share", "seconds", "calls"}}, all of one call. On the CPU the kernels are PyTorch's operators."""
    on_gpu = torch.device(device).type == "cuda"
    activity = torch.profiler.ProfilerActivity
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[activity.CUDA, activity.CPU] if on_gpu else [activity.CPU]) as profiled:
        for _ in range(CALLS):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    found: list[tuple[str, float, int]] = []
    for event in profiled.key_averages():
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        if not on_gpu and "::" not in event.key:  # what PyTorch says of itself
            continue
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros > 0:
            found.append((event.key, 1e-6 * micros / CALLS, event.count // CALLS))
    return summary(found)


def summary(found: list[tuple[str, float, int]]) -> dict[str, Any]:
    """As `shares`, from (name, seconds, calls) of every kernel."""
    total = sum(seconds for _, seconds, _ in found)
    kinds: dict[str, float] = {}
    for name, seconds, _ in found:
        kinds[kind(name)] = kinds.get(kind(name), 0.0) + seconds / total
    largest = sorted(found, key=lambda each: -each[1])[:SHOWN]
    return {
        "seconds": total,
        "kinds": dict(sorted(kinds.items(), key=lambda each: -each[1])),
        "kernels": [
            {"name": name[:120], "kind": kind(name), "share": seconds / total, "seconds": seconds, "calls": calls}
            for name, seconds, calls in largest
        ],
    }
