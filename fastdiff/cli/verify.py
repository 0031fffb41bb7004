"""`fastdiff verify`: a model through the backend against the same model without."""

from __future__ import annotations

import sys
from dataclasses import asdict

import torch

import fastdiff
from fastdiff.cli.console import print_json


def run(model: str, batch: int, seed: int, as_json: bool) -> None:
    """See `fastdiff verify --help`."""
    loaded = fastdiff.load(model)
    torch.manual_seed(seed)
    parameter = next(loaded.parameters())
    x = torch.randn(batch, *loaded.info.shape, dtype=parameter.dtype)
    t = torch.linspace(0, 999, batch)
    found = fastdiff.verify(loaded, fastdiff.optimize(loaded), ((x, t), loaded.info.condition(None, batch)))
    if as_json:
        print_json({"model": model, "same": found.ok, "unproven": found.unproven, "nodes": found.nodes,
                    "against": found.against,
                    "outputs": [asdict(output) for output in found.outputs],
                    "first": None if found.first is None else asdict(found.first)})  # fmt: skip
    else:
        print(found)
    if not found.ok:
        sys.exit(1)
