"""Weights in eight bits a number, as the bundled models ship.

A matrix or convolution is kept as int8 with a float16 scale for each output channel: its largest magnitude / 127.
Vectors and what is small stay in float16. docs/notes/training-latents.md says what this costs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

SCALE = ":scale"  # after the name of a weight: that of its scales
LEAST = 4096  # numbers; eight bits save nothing worth having on fewer


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As a file has them: (out, ...) int8 and NAME:scale (out,) float16, or float16 alone. Packing what was packed
    before changes no bit."""
    found = {}
    for name, value in state.items():
        value = value.detach().cpu().float()
        if value.ndim < 2 or value.numel() < LEAST:
            found[name] = value.half().contiguous()
            continue
        rows = value.flatten(1)
        scale = (rows.abs().amax(1) / 127).half()
        steps = rows / scale.float().clamp_min(torch.finfo(torch.float16).tiny)[:, None]
        found[name] = steps.round().clamp(-127, 127).to(torch.int8).view(value.shape).contiguous()
        found[name + SCALE] = scale
    return found


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as numbers: float32 where they were int8, else as they are."""
    found = {}
    for name, value in state.items():
        if name + SCALE in state:
            value = value.float() * state[name + SCALE].float().view(-1, *[1] * (value.ndim - 1))
        if not name.endswith(SCALE):
            found[name] = value
    return found


def rounded(module: nn.Module) -> nn.Module:
    """The module with its weights as they ship, in place, in float32."""
    state = unpacked(packed(module.state_dict()))
    module.load_state_dict({name: value.float() for name, value in state.items()})
    return module
