"""Pipelines of diffusers that reuse across steps: what their own blocks give if the deep ones are left out by hand."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.caching import Caching

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="diffusers leaves out Stable Diffusion's pipelines without transformers")

from integrations.small_parts import vae  # noqa: E402
from integrations.test_diffusers import dit, pictures, stable_diffusion  # noqa: E402

STEPS = 5  # of `pictures`


class ByHand:
    """Which steps of a pipeline's run reuse, counted by the calls of its denoiser."""

    def __init__(self, denoiser, every):
        self.calls, self.every, self.kept = 0, every, None
        denoiser.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1

    @property
    def reusing(self):
        return (self.calls - 1) % STEPS % self.every != 0


class UNetByHand(ByHand):
    """The last block of the way up starts from what it was given in the last full call."""

    def __init__(self, unet, every):
        super().__init__(unet, every)
        unet.up_blocks[-1].register_forward_pre_hook(self.exchange, with_kwargs=True)

    def exchange(self, _, args, kwargs):
        if not self.reusing:
            self.kept = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": self.kept}


class TransformerByHand(ByHand):
    """The last block gives what the first one gave and what all others added in the last full call."""

    def __init__(self, transformer, every):
        super().__init__(transformer, every)
        transformer.transformer_blocks[0].register_forward_hook(self.first)
        transformer.transformer_blocks[-1].register_forward_hook(self.last)

    def first(self, _, args, output):
        self.outer = output

    def last(self, _, args, output):
        if not self.reusing:
            self.kept = output - self.outer
        return self.outer + self.kept


@pytest.mark.parametrize(
    ("make", "by_hand", "name", "kind"),
    [(stable_diffusion, UNetByHand, "unet", "deep"), (dit, TransformerByHand, "transformer", "blocks")],
)
def test_the_pictures_are_those_of_leaving_blocks_out_by_hand(make, by_hand, name, kind):
    torch.manual_seed(0)
    reference, options = make()
    exact = pictures(reference, options)
    by_hand(getattr(reference, name), every=2)
    expected = pictures(reference, options)
    torch.manual_seed(0)
    pipeline, options = make()
    assert fastdiff.optimize(pipeline, reuse=f"{kind}:2") is pipeline
    fastdiff.restore(pipeline.vae)  # whose capture takes longer than all else here
    first, second = pictures(pipeline, options), pictures(pipeline, options)
    assert abs(first - expected).max() <= 1e-3
    assert abs(first - second).max() == 0  # nothing is kept from one run to the next
    assert abs(first - exact).max() > 2e-3
    said = str(fastdiff.explain(pipeline))
    assert f"{kind}:2: " in said
    assert "6 full calls, 4 that reuse" in said
    fastdiff.restore(pipeline)
    assert abs(pictures(pipeline, options) - exact).max() == 0


def test_a_pipeline_without_a_denoiser_is_refused():
    class Coder(diffusers.DiffusionPipeline):
        def __init__(self, vae):
            super().__init__()
            self.register_modules(vae=vae)

    with pytest.raises(TypeError, match="reuse is for what is named unet, transformer, prior, of which Coder has none"):
        fastdiff.optimize(Coder(vae()), reuse=Caching("deep", every=2))
