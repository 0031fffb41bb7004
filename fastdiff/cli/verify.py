"""`fastdiff verify`: a model through the backend against the same model without."""

from __future__ import annotations

import sys
from dataclasses import asdict

import torch

import fastdiff
from fastdiff import arguments
from fastdiff.cli.console import print_json


def run(model: str, batch: int, seed: int, as_json: bool, device: str = "cpu", dtype: str = "float32") -> None:
    """See `fastdiff verify --help`."""
    where, kind = arguments.device("--device", device), arguments.dtype("--dtype", dtype)
    loaded = fastdiff.load(model, device=where, dtype=kind)
    numbers = torch.Generator("cpu").manual_seed(seed)  # the same input on every device
    x = torch.randn(batch, *loaded.info.shape, generator=numbers, device="cpu").to(where, kind)
    t = torch.linspace(0, 999, batch, device=where)
    image = loaded.info.image
    given = None if image is None else torch.rand(image.shape, generator=numbers, device="cpu").to(where, kind)
    cond = loaded.info.condition(None, batch, image=given)
    found = fastdiff.verify(loaded, fastdiff.optimize(loaded), ((x, t), cond))
    if as_json:
        print_json({"model": model, "device": str(where), "dtype": dtype,
                    "same": found.ok, "unproven": found.unproven, "nodes": found.nodes,
                    "against": found.against,
                    "outputs": [asdict(output) for output in found.outputs],
                    "first": None if found.first is None else asdict(found.first)})  # fmt: skip
    else:
        print(found)
    if not found.ok:
        sys.exit(1)
