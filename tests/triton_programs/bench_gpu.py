"""The checks of the GPU kernels' benchmark."""

from __future__ import annotations

import torch

from fastdiff.bench.gpu import cases, check


def checks() -> None:
    for case in cases(small=True):
        if case.dtype != torch.bfloat16:  # the interpreter computes it wrongly
            check(case, "cpu")
