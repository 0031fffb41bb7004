"""Graphs that the passes take for a GPU's, run by the operators' references on the CPU."""

from __future__ import annotations

import copy

import torch
from compiler.test_passes import floor
from conftest import assert_no_worse
from torch import nn

import fastdiff
from fastdiff.compiler import nodes
from fastdiff.compiler.report import reports_of


def stand_in(monkeypatch) -> None:
    """Let the passes take the CPU for a GPU."""
    monkeypatch.setattr(nodes, "device_of", lambda graph: torch.device("cuda"))


def matches(model: nn.Module, name: str) -> list[int]:
    """What a pass says that it matched, of each graph of the model. No pass may have failed."""
    reports = reports_of(list(model.parameters()))
    assert not [notes.error for report in reports for notes in report.passes if notes.error]
    assert not [report.fallback for report in reports if report.fallback]
    return [notes.matches for report in reports for notes in report.passes if notes.name == name]


def called(model: nn.Module, number: int = 0) -> list[str]:
    """What a graph of the model calls, by name."""
    graph = reports_of(list(model.parameters()))[number].graph
    parts = {name: type(part).__name__ for name, part in graph.module.named_modules(remove_duplicate=False)}
    found = [parts.get(str(node.target)) or getattr(node.target, "__name__", "") for node in graph.module.graph.nodes]
    kept = [part for part in graph.module.modules() if type(part).__name__ == "Kept"]
    inner = [node.target for part in kept for node in part.module.graph.nodes]
    return found + [parts.get(f"kept.module.{target}") or getattr(target, "__name__", "") for target in inner]


def agrees(model: nn.Module, *args, strides: bool = True, **kwargs) -> None:
    """Whether the optimized model is as exact as the model, against float64; strides: and has the same ones."""

    def tensors(found):
        found = found if isinstance(found, (torch.Tensor, tuple, list)) else found.to_tuple()
        return [found] if isinstance(found, torch.Tensor) else [t for t in found if isinstance(t, torch.Tensor)]

    def wide(x):
        if isinstance(x, dict):
            return {key: wide(each) for key, each in x.items()}
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    with torch.no_grad():
        ours, theirs = tensors(model(*args, **kwargs)), tensors(model._call_impl(*args, **kwargs))
        exact = copy.deepcopy(model)
        fastdiff.restore(exact)
        oracles = tensors(exact.double()(*map(wide, args), **wide(kwargs)))
    assert ours
    for our, their, oracle in zip(ours, theirs, oracles, strict=True):
        assert not strides or our.stride() == their.stride()
        assert our.dtype is their.dtype
        assert_no_worse(our, their, oracle, floor=floor(oracle))
