"""Folders of diffusers: the network is called as by the pipeline, latents become the pipeline's pictures, and what
fastdiff does not know of a pipeline is refused."""

import pytest
import torch

import fastdiff
from fastdiff.profiling import get_subject
from fastdiff.profiling.diffusers_folder import load_folder

diffusers = pytest.importorskip("diffusers", reason="the folders are diffusers'")
pytest.importorskip("transformers", reason="the pipelines need it")
pytest.importorskip("tokenizers")

from integrations import text_pipelines as texts  # noqa: E402
from integrations.small_parts import randomized, unet, vae  # noqa: E402

PROMPT = "a red apple"
UNCONDITIONAL = dict(
    block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, sample_size=8,
    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
)  # fmt: skip


def shifted(pipe):
    """An autoencoder of the size of the network's latents, with scaling, shift and, for XL, a mean and a spread."""
    torch.manual_seed(0)
    channels = getattr(pipe, "unet", None) or pipe.transformer
    options = dict(scaling_factor=0.3, latent_channels=channels.config.in_channels)
    if "XL" in type(pipe).__name__:
        options |= dict(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[0.5, 1.5, 2.0, 0.7])
    elif "3" in type(pipe).__name__:
        options |= dict(shift_factor=0.2)
    network = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, **options,
    )  # fmt: skip
    pipe.register_modules(vae=randomized(network))
    return pipe


def xl_with_empty_prompt():
    return texts.stable_diffusion_xl(force_zeros_for_empty_prompt=False)


PIPELINES = {
    "stable-diffusion": texts.stable_diffusion,
    "xl": texts.stable_diffusion_xl,
    "xl, an empty prompt is no zeros": xl_with_empty_prompt,
    "pixart-alpha": texts.pixart,
    "pixart-sigma": lambda: texts.pixart("PixArtSigmaPipeline"),
    "stable-diffusion-3": texts.stable_diffusion_3,
    "stable-diffusion-3 without T5": lambda: texts.stable_diffusion_3(with_t5=False),
}


@pytest.mark.parametrize("make", PIPELINES.values(), ids=PIPELINES)
@torch.no_grad()
def test_text_pipelines(make, tmp_path):
    pipe = shifted(make())
    if hasattr(pipe, "vae_scale_factor"):
        pipe.vae_scale_factor = 8
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, "unet", None) or pipe.transformer
    randomized(network)
    pipe.save_pretrained(tmp_path)
    subject = load_folder(tmp_path, (PROMPT,))
    calls = []
    hook = network.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args, kwargs, out[0])), with_kwargs=True
    )
    x = torch.randn(1, *subject.shape, generator=torch.Generator().manual_seed(0))
    options = {"use_resolution_binning": False} if "PixArt" in type(pipe).__name__ else {}
    size = 8 * subject.shape[-1]
    latents = pipe(
        PROMPT, latents=x, num_inference_steps=1, output_type="latent", height=size, width=size, guidance_scale=5.0,
        **options,
    ).images  # fmt: skip
    hook.remove()
    args, kwargs, (without, given) = calls[0]
    state, time = kwargs.get("hidden_states", args[0] if args else None), kwargs.get("timestep", args[1:2])
    time = time[0] if isinstance(time, tuple) else time
    times = torch.as_tensor(time).reshape(-1).float().expand(2)[:1]
    cond, uncond = subject.conditions_of(0, 1)
    for expected, conditions in ((given, cond), (without, uncond)):
        torch.testing.assert_close(subject.model(state[:1], times, **conditions)[0], expected, rtol=1e-4, atol=1e-5)
    assert float((given - without).abs().max()) > 1e-3  # the text matters
    again = pipe(
        PROMPT, latents=x, num_inference_steps=1, output_type="pt", height=size, width=size, guidance_scale=5.0,
        **options,
    ).images  # fmt: skip
    ours = subject.pictures(latents)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), again, rtol=1e-3, atol=1e-4)
    # What is encoded is decoded: the scaling is undone in the other order.
    found = subject.encode(ours.clamp(-1, 1))
    mean = pipe.vae.encode(ours.clamp(-1, 1)).latent_dist.mode()
    plain = subject.decode(found)
    torch.testing.assert_close(plain, pipe.vae.decode(mean, return_dict=False)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_time_is_the_schedulers(tmp_path):
    texts.stable_diffusion_3().save_pretrained(tmp_path)
    subject, seen = get_subject(str(tmp_path)), []
    network = lambda x, t, **_: seen.append(float(t[0])) or torch.zeros_like(x)  # noqa: E731
    fastdiff.sample(network, (1, *subject.shape), schedule=subject.schedule, prediction="flow", solver="ddim",
                    steps=2, grid="uniform")  # fmt: skip
    assert seen[0] == pytest.approx(1000)


@pytest.mark.parametrize("make", [texts.stable_diffusion, texts.stable_diffusion_xl, texts.pixart,
                                  texts.stable_diffusion_3])  # fmt: skip
def test_a_guided_run_of_several_prompts(make, tmp_path):
    make().save_pretrained(tmp_path)
    subject = load_folder(tmp_path, (PROMPT, "the green pear"))
    cond, uncond = subject.conditions_of(1, 3)
    x = torch.randn(3, *subject.shape)
    common = dict(schedule=subject.schedule, prediction=subject.prediction, steps=2, guidance=subject.guidance)
    found = fastdiff.sample(subject.model, x, cond=cond, uncond=uncond, **common)
    assert found.shape == x.shape
    second, none = subject.conditions_of(2, 1)
    alone = fastdiff.sample(subject.model, x[1:2], cond=second, uncond=none, **common)
    assert float((found[1:2] - alone).abs().max()) <= 1e-4 * float(alone.abs().max())


def test_the_scale_is_that_of_the_pipeline(tmp_path):
    texts.pixart().save_pretrained(tmp_path)
    assert load_folder(tmp_path).guidance == 4.5


@torch.no_grad()
def test_a_vqvae_decodes(tmp_path):
    """LDM's folders name their autoencoder so: its latents were taken for pictures."""
    torch.manual_seed(0)
    quantized = randomized(diffusers.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, num_vq_embeddings=16,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.25,
    ))  # fmt: skip
    network = diffusers.UNet2DModel(in_channels=3, out_channels=3, **UNCONDITIONAL)
    pipe = diffusers.LDMPipeline(quantized, network, diffusers.DDIMScheduler())
    pipe.save_pretrained(tmp_path)
    subject = load_folder(tmp_path)
    latents, picture = torch.randn(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(subject.pictures(latents), quantized.decode(latents / 0.25).sample)
    torch.testing.assert_close(subject.encode(picture), 0.25 * quantized.encode(picture).latents)


@torch.no_grad()
def test_a_tiny_autoencoder_encodes(tmp_path):
    pipe = texts.stable_diffusion()
    tiny = randomized(diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ))  # fmt: skip
    pipe.register_modules(vae=tiny)
    pipe.save_pretrained(tmp_path)
    subject, picture = load_folder(tmp_path), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(subject.encode(picture), tiny.encode(picture).latents)


def test_classes_of_a_unet(tmp_path):
    network = diffusers.UNet2DModel(num_class_embeds=10, **UNCONDITIONAL)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    subject = load_folder(tmp_path)
    cond, uncond = subject.conditions_of(0, 3)
    assert cond["class_labels"].tolist() == [0, 7, 4]
    assert uncond is None
    found = fastdiff.sample(subject.model, (3, *subject.shape), schedule=subject.schedule, prediction="eps", steps=2,
                            cond=cond)  # fmt: skip
    assert found.isfinite().all()


def with_part(**parts):
    pipe = texts.stable_diffusion()
    pipe.register_modules(**parts)
    return pipe


def other_scheduler(cls):
    return with_part(scheduler=cls())


def with_unet(**options):
    up = {**texts.UNET, "in_channels": 9} if options.pop("inpainting", False) else texts.UNET
    return with_part(unet=diffusers.UNet2DConditionModel(**up, cross_attention_dim=32, **options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (texts.flux, "fastdiff knows no conditions of a FluxPipeline"),
        (lambda: with_unet(inpainting=True), "takes 9 channels and returns 4: more than the state"),
        (lambda: with_unet(time_cond_proj_dim=8), "has time_cond_proj_dim=8, whose input fastdiff does not know"),
        (lambda: with_unet(class_embed_type="timestep"), "has class_embed_type='timestep', whose input"),
        (lambda: other_scheduler(diffusers.LCMScheduler), "a network for LCMScheduler is distilled"),
        (lambda: other_scheduler(diffusers.EDMEulerScheduler), "EDMEulerScheduler has no betas"),
    ],
)
def test_what_is_not_known_is_refused(make, message, tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_a_part_that_would_be_left_out_is_refused(tmp_path):
    from integrations.small_parts import controlnet

    pipe = diffusers.StableDiffusionControlNetPipeline(
        vae=vae(), text_encoder=texts.clip(1), tokenizer=texts.tokenizer(12), unet=unet(), controlnet=controlnet(),
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would leave out controlnet of this StableDiffusionControlNetPipel"):
        load_folder(tmp_path)
