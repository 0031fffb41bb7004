"""What operators import when they run, and what is listed to be compiled ahead of time."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

import fastdiff
from fastdiff.cli.kernels import COMPILED
from fastdiff.kernels import launching
from fastdiff.kernels.residual_ada_layer_norm import residual_ada_layer_norm_backward


def imports() -> None:
    x, row = torch.randn(1, 4, 16, requires_grad=True), torch.randn(1, 1, 16)
    with fastdiff.use("triton"):
        heads, image = x.reshape(1, 2, 2, 16), x.reshape(1, 4, 4, 4)
        fastdiff.ops.attention(heads, heads, heads).sum().backward()
        fastdiff.ops.group_norm_silu(image, 2).sum().backward()
        fastdiff.ops.ada_layer_norm(x, row, row).sum().backward()
        fastdiff.ops.linear_combine([[2.0]], [x.detach()])
    residual_ada_layer_norm_backward(None, *[x.detach()] * 3)
    ours = [name for name in sys.modules if name.startswith("fastdiff.kernels.")]
    for op in ("attention", "group_norm_silu", "ada_layer_norm", "linear_combine"):
        assert f"fastdiff.kernels.{op}.forward" in ours
    assert not [name for name in ours if "ahead_of_time" in name or name.endswith(".variants")]


def listed(target: str) -> None:
    """Each kernel of a folder is in the folder's list of compilations, with a cost."""
    from fastdiff.kernels.ahead_of_time.catalogue import entries

    for op in COMPILED:
        found = list(entries(op, target))
        assert any(entry.usual for entry in found), op
        for entry in found:
            cost = entry.cost(264)
            assert 0 < cost.least <= cost.moved, (op, entry.kernel, entry.detail, cost)
        texts = [path.read_text(encoding="utf-8") for path in (Path(launching.__file__).parent / op).glob("*.py")]
        kernels = {name for text in texts for name in re.findall(r"^def (\w+)_kernel\(", text, re.MULTILINE)}
        assert kernels <= {entry.launch.name for entry in found}, op
