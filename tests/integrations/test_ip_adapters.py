"""IP-Adapters in a pipeline that is optimized already: loaded, scaled, masked, exchanged and unloaded between calls."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.compiler.optimize import reports_of_module

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="diffusers leaves out Stable Diffusion's pipelines without transformers")

from integrations.small_parts import ip_adapter, unet  # noqa: E402


def loaded(pipeline, *adapters):
    names = [f"{number}" for number in range(len(adapters))]
    pipeline.load_ip_adapter([*adapters], subfolder="none", weight_name=names, image_encoder_folder=None)


@torch.no_grad()
def call(model, images=0, **options):
    """The optimized network's result, once it is the original's."""
    generator = torch.Generator().manual_seed(0)
    x, text, *given = (torch.randn(size, generator=generator) for size in [(2, 4, 8, 8), (2, 7, 12), *[(2, 1, 24)] * 2])
    if images:
        options["added_cond_kwargs"] = {"image_embeds": given[:images]}
    right = model._call_impl(x, torch.tensor(300), text, **options).sample
    before = sum(each.calls for each in reports_of_module(model))
    for _ in range(2):
        found = model(x, torch.tensor(300), text, **options).sample
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert sum(each.calls for each in reports_of_module(model)) == before + 2  # one graph in each call
    return right


@pytest.fixture
def pipeline():
    model = unet()
    made = diffusers.StableDiffusionPipeline(
        None, None, None, model, diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    return fastdiff.optimize(made, disable=["scheduler"])


def different(*results):
    return all(
        not torch.allclose(one, other, rtol=1e-3, atol=1e-3)
        for number, one in enumerate(results)
        for other in results[:number]
    )


def test_loaded_scaled_and_unloaded(pipeline):
    model = pipeline.unet
    plain = call(model)
    loaded(pipeline, ip_adapter(model))
    results = [call(model, 1)]
    for scale in (0.5, {"up": {"block_1": [0.0, 1.0]}}):
        pipeline.set_ip_adapter_scale(scale)
        results.append(call(model, 1))
    for key, value in model.state_dict().items():
        if "_ip" in key:  # fine-tuned
            value.mul_(1.5)
    results.append(call(model, 1))
    assert different(plain, *results)
    pipeline.unload_ip_adapter()
    torch.testing.assert_close(call(model), plain)


@pytest.mark.long
def test_another_and_two_with_masks(pipeline):
    model = pipeline.unet
    loaded(pipeline, ip_adapter(model, 1))
    results = [call(model, 1)]
    loaded(pipeline, ip_adapter(model, 2))
    results.append(call(model, 1))
    loaded(pipeline, ip_adapter(model, 3), ip_adapter(model, 4))
    pipeline.set_ip_adapter_scale([0.4, 0.9])
    results.append(call(model, 2))
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    masks = {"ip_adapter_masks": [left, 1 - left]}
    results.append(call(model, 2, cross_attention_kwargs=masks))
    assert different(*results)
