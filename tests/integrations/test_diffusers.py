"""Pipelines of diffusers with small random weights: the same pictures after one line; schedulers that pass as its."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.compiler.report import reports_of

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="diffusers leaves out Stable Diffusion's pipelines without transformers")

from fastdiff.integrations.diffusers import SolverScheduler, scheduler_for  # noqa: E402

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def randomized(model, seed=0):
    """No weight is zero or one, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vae():
    return randomized(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        )
    )


def unet(**options):
    torch.manual_seed(0)
    return randomized(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
            **options,
        )
    )


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


def test_a_scheduler_passes_as_diffusers(tmp_path):
    scheduler = SolverScheduler(**BETAS, solver="dpmpp-2m", timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path)
    again = SolverScheduler.from_pretrained(tmp_path)
    assert again.config.solver == "dpmpp-2m"
    assert isinstance(again, diffusers.SchedulerMixin)
    assert SolverScheduler.from_config(again.config).config.beta_end == 0.012
    again.set_timesteps(4)
    assert again.timesteps.tolist() == [999, 749, 499, 249]
    assert (again.order, len(again)) == (1, 1000)
    x = torch.randn(1, 4, 8, 8)
    assert again.scale_model_input(x, 999) is x
    again.set_begin_index(0)
    with pytest.raises(ValueError, match="timestep 249 is out of order: the next one is 999"):
        again.step(x, 249, x)
    with pytest.raises(ValueError, match="unknown prediction_type"):
        SolverScheduler(prediction_type="noise")
    with pytest.raises(ValueError, match="set_timesteps must be called"):
        SolverScheduler().step(x, 1, x)


@pytest.mark.parametrize(
    ("theirs", "solver"),
    [
        (diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1), "ddim"),
        (diffusers.DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction"), "ddim"),
        (diffusers.DPMSolverMultistepScheduler(**BETAS), "dpmpp-2m"),
        (diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing"), "dpmpp-2m"),
        (diffusers.UniPCMultistepScheduler(**BETAS, final_sigmas_type="zero"), "unipc-2"),
        (diffusers.DDPMScheduler(), "ddpm"),
    ],
)
@pytest.mark.parametrize("begin", [0, 3])
def test_the_same_steps(theirs, solver, begin):
    ours, name = scheduler_for(theirs)
    assert name == solver
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (ours, theirs):
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x, generator = start, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps[begin:]:
            out = 0.7 * torch.tanh(scheduler.scale_model_input(x, t))
            options = {"generator": generator} if solver == "ddpm" else {}
            x = scheduler.step(out, t, x, **options).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_what_has_no_counterpart_stays():
    pipeline, options = stable_diffusion()
    pipeline.scheduler = before = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)  # its default
    expected = pictures(pipeline, options)
    fastdiff.optimize(pipeline)
    assert pipeline.scheduler is before
    assert abs(pictures(pipeline, options) - expected).max() <= 1e-3
    assert scheduler_for(diffusers.DDIMScheduler(clip_sample=True)) == (None, "DDIMScheduler with clip_sample=True")
