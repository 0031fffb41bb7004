"""Pipelines of diffusers with small random weights: the same pictures after one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from graph_stand_in import cuda_graphs  # noqa: F401

import fastdiff
from fastdiff.compiler.report import reports_of

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="diffusers leaves out Stable Diffusion's pipelines without transformers")

from integrations.small_parts import randomized, unet, vae  # noqa: E402

from fastdiff.integrations.diffusers import SolverScheduler, scheduler_for  # noqa: E402

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def stable_diffusion():
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = diffusers.StableDiffusionPipeline(
        vae(), None, None, unet(), scheduler, None, None, requires_safety_checker=False
    )
    embeddings = torch.randn(2, 1, 7, 12, generator=torch.Generator().manual_seed(1))
    return pipeline, dict(prompt_embeds=embeddings[0], negative_prompt_embeds=embeddings[1], guidance_scale=3.0)


def stable_diffusion_xl():
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    model = unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 10
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae(), None, None, None, None, model, scheduler, add_watermarker=False
    )
    embeddings = torch.randn(2, 1, 7, 12, generator=torch.Generator().manual_seed(1))
    pooled = torch.randn(2, 1, 10, generator=torch.Generator().manual_seed(2))
    return pipeline, dict(
        prompt_embeds=embeddings[0],
        negative_prompt_embeds=embeddings[1],
        pooled_prompt_embeds=pooled[0],
        negative_pooled_prompt_embeds=pooled[1],
    )


def dit():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,  # class 1000 is none, for the pipeline
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, final_sigmas_type="zero")
    pipeline = diffusers.DiTPipeline(randomized(transformer), vae(), scheduler)
    return pipeline, dict(class_labels=[1, 2])


def ddpm():
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    return diffusers.DDPMPipeline(randomized(model), diffusers.DDPMScheduler()), dict(batch_size=2)


def ldm():
    torch.manual_seed(0)
    quantizer = diffusers.VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=4,
    )
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    return diffusers.LDMPipeline(randomized(quantizer), randomized(model), scheduler), dict(batch_size=2)


def pictures(pipeline, options):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(**options, num_inference_steps=5, generator=generator, output_type="np").images


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl, dit, ddpm, ldm])
def test_the_same_pictures(make):
    pipeline, options = make()
    expected = pictures(pipeline, options)
    before = pipeline.scheduler
    assert fastdiff.optimize(pipeline) is pipeline
    assert isinstance(pipeline.scheduler, SolverScheduler)
    assert isinstance(pipeline.scheduler, type(before))
    found = pictures(pipeline, options)
    assert expected.std() > 0.01
    assert abs(found - expected).max() <= 1e-3
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    assert any(notes.matches for r in reports_of(list(model.parameters())) for notes in r.passes)
    fastdiff.restore(pipeline)
    assert pipeline.scheduler is before
    assert abs(pictures(pipeline, options) - expected).max() == 0


def test_lora_and_attention_processors_after_optimize():
    peft = pytest.importorskip("peft")
    model = unet()
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(7), torch.randn(1, 7, 12)
    fastdiff.optimize(model)
    with torch.no_grad():
        before = model(*inputs).sample
        model.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
        changed = model(*inputs).sample
        torch.testing.assert_close(changed, model._call_impl(*inputs).sample, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(changed, before, atol=1e-3)

        class Nothing:
            """A processor that lets nothing through."""

            def __call__(self, attention, hidden_states, *rest, **options):
                return torch.zeros_like(hidden_states)

        model.set_attn_processor(Nothing())
        found = model(*inputs).sample
        torch.testing.assert_close(found, model._call_impl(*inputs).sample, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, before, atol=1e-3)


def test_eta_reaches_the_scheduler():
    """Pipelines offer eta to a scheduler whose step names it."""
    pipeline, options = stable_diffusion()
    expected = [pictures(pipeline, {**options, "eta": eta}) for eta in (0.0, 1.0)]
    fastdiff.optimize(pipeline)
    for eta, pictured in zip((0.0, 1.0), expected):
        assert abs(pictures(pipeline, {**options, "eta": eta}) - pictured).max() <= 1e-3
    assert abs(expected[0] - expected[1]).max() > 0.05


def test_ddim_pipeline_with_eta():
    pipeline, options = ddpm()
    pipeline = diffusers.DDIMPipeline(pipeline.unet, diffusers.DDIMScheduler())
    expected = pictures(pipeline, {**options, "eta": 1.0})
    fastdiff.optimize(pipeline)
    assert isinstance(pipeline.scheduler, SolverScheduler)
    assert abs(pictures(pipeline, {**options, "eta": 1.0}) - expected).max() <= 1e-3


def test_timesteps_of_ones_own():
    pipeline, options = stable_diffusion_xl()
    options["timesteps"] = [999, 845, 587, 310, 113]  # of Align Your Steps
    expected = pictures(pipeline, options)
    fastdiff.optimize(pipeline)
    assert abs(pictures(pipeline, options) - expected).max() <= 1e-3


@pytest.mark.parametrize("make", [diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler])
def test_panorama_copies_the_scheduler_for_each_window(make):
    pipeline, options = stable_diffusion()
    scheduler = (
        diffusers.DDIMScheduler(**BETAS, clip_sample=False) if make is diffusers.DDIMScheduler else make(**BETAS)
    )
    wide = diffusers.StableDiffusionPanoramaPipeline(
        pipeline.vae, None, None, pipeline.unet, scheduler, None, None, requires_safety_checker=False
    )
    options |= dict(height=64, width=160)
    expected = pictures(wide, options)
    fastdiff.optimize(wide)
    assert abs(pictures(wide, options) - expected).max() <= 1e-3


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(**BETAS),
        diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True,
                                prediction_type="v_prediction"),
        diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="linspace"),
        diffusers.EulerDiscreteScheduler(**BETAS),
        diffusers.EulerAncestralDiscreteScheduler(**BETAS),
        diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"),
        diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
        diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
        diffusers.HeunDiscreteScheduler(**BETAS),
        diffusers.LMSDiscreteScheduler(**BETAS),
        diffusers.LCMScheduler(**BETAS),
        diffusers.DEISMultistepScheduler(**BETAS),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)  # fmt: skip
def test_schedulers_in_a_pipeline(scheduler):
    pipeline, options = stable_diffusion()
    pipeline.scheduler = scheduler
    expected = pictures(pipeline, options)
    pipeline.scheduler, reason = scheduler_for(scheduler)
    assert pipeline.scheduler is not None, reason
    for _ in range(2):
        assert abs(pictures(pipeline, options) - expected).max() <= 1e-3


def test_a_scheduler_that_cannot_be_measured_stays():
    pipeline, options = stable_diffusion()
    pipeline.scheduler = before = diffusers.DDIMScheduler(**BETAS, thresholding=True)
    expected = pictures(pipeline, options)
    fastdiff.optimize(pipeline)
    assert pipeline.scheduler is before
    assert abs(pictures(pipeline, options) - expected).max() <= 1e-3
    assert "scheduler: left to diffusers: DDIMScheduler with thresholding=True" in str(fastdiff.explain(pipeline))


LOAD = """
import sys, diffusers
pipe = getattr(diffusers, sys.argv[1]).from_pretrained(sys.argv[2])
assert "fastdiff" not in sys.modules
print(type(pipe.scheduler).__module__, type(pipe.scheduler).__name__, type(pipe.unet).__name__)
"""


def test_a_pipeline_is_saved_as_it_was(tmp_path):
    pipeline, options = ddpm()
    pipeline.save_pretrained(tmp_path / "before")
    pictures(fastdiff.optimize(pipeline), options)
    pipeline.save_pretrained(tmp_path / "after")
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        assert (tmp_path / "after" / name).read_text() == (tmp_path / "before" / name).read_text()
    command = [sys.executable, "-c", LOAD, "DDPMPipeline", tmp_path / "after"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["diffusers.schedulers.scheduling_ddpm", "DDPMScheduler", "UNet2DModel"]


@pytest.mark.parametrize("before", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_the_configuration_gives_the_same_other_schedulers(before):
    pipeline, _ = stable_diffusion()
    pipeline.scheduler = getattr(diffusers, before)(**BETAS)
    others = [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, diffusers.PNDMScheduler]
    others += [diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler, diffusers.LCMScheduler]
    config = dict(pipeline.scheduler.config)
    expected = [dict(other.from_config(pipeline.scheduler.config).config) for other in others]
    fastdiff.optimize(pipeline)
    assert dict(pipeline.scheduler.config) == config
    for other, wanted in zip(others, expected):
        found = dict(other.from_config(pipeline.scheduler.config).config)
        for each in (found, wanted):
            each["_use_default_values"] = sorted(each["_use_default_values"])
        assert found == wanted
    again = pipeline.scheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    assert isinstance(again, getattr(diffusers, before))


def test_restore_keeps_what_the_user_set():
    pipeline, _ = ddpm()
    fastdiff.optimize(pipeline)
    pipeline.scheduler = chosen = diffusers.EulerDiscreteScheduler()
    fastdiff.restore(pipeline)
    assert pipeline.scheduler is chosen
    pipeline.scheduler = before = diffusers.FlowMatchEulerDiscreteScheduler()
    fastdiff.optimize(pipeline)
    assert pipeline.scheduler is not before
    pipeline.scheduler.set_shift(3.0)
    pipeline.scheduler.register_to_config(num_train_timesteps=500)
    fastdiff.restore(pipeline)
    assert pipeline.scheduler is before
    assert (before.shift, before.config.num_train_timesteps) == (3.0, 500)
    fastdiff.restore(pipeline)
    assert pipeline.scheduler is before
    fastdiff.optimize(fastdiff.optimize(pipeline))
    fastdiff.restore(pipeline)
    assert pipeline.scheduler is before


def test_a_scheduler_that_two_pipelines_share():
    first, options = stable_diffusion()
    expected = pictures(first, options)
    second = diffusers.StableDiffusionPipeline(**first.components, requires_safety_checker=False)
    fastdiff.optimize(first)
    third = diffusers.StableDiffusionPipeline(**first.components, requires_safety_checker=False)
    for pipeline in (first, second, third, first):
        assert abs(pictures(pipeline, options) - expected).max() <= 1e-3
    fastdiff.restore(third)
    assert not isinstance(third.scheduler, SolverScheduler)
    assert isinstance(first.scheduler, SolverScheduler)


def test_disable_leaves_the_scheduler():
    pipeline, _ = ddpm()
    before = pipeline.scheduler
    fastdiff.optimize(pipeline, disable=["scheduler"])
    assert pipeline.scheduler is before
    assert "scheduler: not optimized, though it could be: DDPMScheduler" in str(fastdiff.explain(pipeline))


@pytest.mark.parametrize("make", [stable_diffusion, dit, ddpm])
def test_the_same_pictures_by_cuda_graphs(make, cuda_graphs):  # noqa: F811
    """With the stand-in for a graph."""
    pipeline, options = make()
    expected = pictures(pipeline, options)
    fastdiff.optimize(pipeline)
    for _ in range(2):
        assert abs(pictures(pipeline, options) - expected).max() <= 1e-3
    assert max(graph.replays for graph in cuda_graphs) >= 6  # of the network, in both runs
    assert "a CUDA graph, replayed" in "\n".join(fastdiff.explain(pipeline).model)
    fastdiff.restore(pipeline)
    replays = sum(graph.replays for graph in cuda_graphs)
    assert (pictures(pipeline, options) == expected).all()
    assert sum(graph.replays for graph in cuda_graphs) == replays
