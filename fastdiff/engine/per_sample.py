"""Classifier-free guidance with a scale for each sample: it is mixed in the network's place, not in the Program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.calls import join, tensor_in
from fastdiff.errors import expect
from fastdiff.guidance.classifier_free import CFG, rescale_guidance
from fastdiff.program.transforms import per_sample
from fastdiff.runtime import runs


class Mixed:
    """network(x, t) -> the guided output, uncond + scale (cond - uncond), a scale each sample.

    split: the network returns a variance in the second half of its channels, which is the conditional one's. Raises
    ValueError unless there are as many scales as samples, and for an interval and for steps without the unconditional
    output, which the network does not know.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        guidance: CFG,
        cond: Mapping[str, Any],
        uncond: Mapping[str, Any],
        like: Tensor,
        split: bool,
    ) -> None:
        assert isinstance(guidance.scale, tuple)
        batch = len(like)
        count = len(guidance.scale)
        expect(count == batch, f"guidance must be one scale or one a sample ({batch}), got {count}")
        expect(guidance.interval is None, "guidance with one scale a sample takes no interval")
        expect(
            guidance.every == 1,
            f"guidance with one scale a sample is computed at every step, got every={guidance.every}",
        )
        self.network, self.rescale, self.split = network, guidance.rescale, split
        self.cond, self.uncond, self.both = cond, uncond, join(cond, uncond, batch)
        dtype = torch.promote_types(like.dtype, torch.float32)
        scales = torch.tensor(guidance.scale, dtype=torch.float64, device="cpu")
        self.scales = per_sample(scales.to(like.device, dtype), like)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.both is not None:
            whole = tensor_in(self.network(torch.cat([x, x]), torch.cat([t, t]), **self.both))
            if len(whole) != 2 * len(x):
                return whole  # whose shape is refused by who called
            out, uncond = whole.chunk(2)
        else:
            out = tensor_in(self.network(x, t, **self.cond))
            with runs.branch("uncond"):
                uncond = tensor_in(self.network(x, t, **self.uncond))
        variance = None
        if self.split:
            (out, variance), uncond = out.chunk(2, dim=1), uncond.chunk(2, dim=1)[0]
        dtype = self.scales.dtype
        guided = uncond.to(dtype) + self.scales * (out.to(dtype) - uncond.to(dtype))
        if self.rescale:
            guided = rescale_guidance(guided, out.to(dtype), share=self.rescale)
        return guided if variance is None else torch.cat([guided, variance.to(dtype)], 1)
