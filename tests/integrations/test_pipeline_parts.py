"""Which networks and schedulers of a pipeline `optimize` takes, and what `explain` says of each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastdiff

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="diffusers leaves out most pipelines without transformers")

from integrations.small_parts import controlnet, randomized, unet, vae  # noqa: E402

from fastdiff.compiler.optimize import FastCall  # noqa: E402
from fastdiff.integrations.diffusers import SolverScheduler, models  # noqa: E402
from fastdiff.runtime import contents  # noqa: E402


def with_controlnets(count):
    nets = [controlnet() for _ in range(count)]
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae(), None, None, unet(), nets if count > 1 else nets[0], diffusers.UniPCMultistepScheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def adapter(seed):
    torch.manual_seed(seed)
    return diffusers.T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2)


def with_adapters(count):
    nets = [randomized(adapter(seed), seed) for seed in range(count)]
    pipeline = diffusers.StableDiffusionAdapterPipeline(
        vae(), None, None, unet(), nets if count > 1 else nets[0], diffusers.DDIMScheduler(clip_sample=False), None,
        None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ).eval()  # fmt: skip


def wan():
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=diffusers.UniPCMultistepScheduler(),
        transformer=transformer(), transformer_2=transformer(),
    )  # fmt: skip


def prior():
    return diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, embedding_dim=16, num_layers=1, num_embeddings=7
    ).eval()


def movq():
    return diffusers.VQModel(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, num_vq_embeddings=16, norm_num_groups=4,
    ).eval()  # fmt: skip


def kandinsky():
    return diffusers.KandinskyV22CombinedPipeline(
        unet=unet(), scheduler=diffusers.DDPMScheduler(), movq=movq(), prior_prior=prior(), prior_image_encoder=None,
        prior_text_encoder=None, prior_tokenizer=None, prior_scheduler=diffusers.UnCLIPScheduler(),
        prior_image_processor=None,
    )  # fmt: skip


def cascade_unet():
    from diffusers.models import StableCascadeUNet

    return StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=16, block_out_channels=(16, 32), num_attention_heads=(0, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1), block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
        clip_text_pooled_in_channels=16, clip_seq=1, switch_level=(False,), timestep_ratio_embedding_dim=8,
        dropout=(0.1, 0.1), self_attn=False,
    ).eval()  # fmt: skip


def cascade_decoder():
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    vqgan = PaellaVQModel(embed_dim=8, num_vq_embeddings=16, levels=1, bottleneck_blocks=1)
    return diffusers.StableCascadeDecoderPipeline(
        decoder=cascade_unet(), tokenizer=None, text_encoder=None, scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=vqgan.eval(),
    )  # fmt: skip


class Two(diffusers.DiffusionPipeline):
    """As super-resolution has it: two networks and two schedulers, by names of one's own, and one that is not named."""

    def __init__(self, small_net, large_net, first_scheduler, second_scheduler, text_encoder):
        super().__init__()
        self.register_modules(
            small_net=small_net,
            large_net=large_net,
            first_scheduler=first_scheduler,
            second_scheduler=second_scheduler,
            text_encoder=text_encoder,
        )
        self.another = unet()


def two():
    return Two(
        unet(), unet(in_channels=8), diffusers.DDPMScheduler(), diffusers.EulerDiscreteScheduler(), nn.Linear(2, 2)
    )


PARTS = {
    "one ControlNet": (lambda: with_controlnets(1), "vae.encoder vae.decoder unet controlnet"),
    "several ControlNets": (
        lambda: with_controlnets(2),
        "vae.encoder vae.decoder unet controlnet.nets.0 controlnet.nets.1",
    ),
    "one T2I-Adapter": (lambda: with_adapters(1), "vae.encoder vae.decoder unet adapter"),
    "several T2I-Adapters": (
        lambda: with_adapters(2),
        "vae.encoder vae.decoder unet adapter.adapters.0 adapter.adapters.1",
    ),
    "Wan 2.2": (wan, "transformer transformer_2"),
    "Kandinsky": (kandinsky, "unet movq.encoder movq.decoder prior_prior"),
    "Stable Cascade": (cascade_decoder, "decoder vqgan"),
    "names of one's own": (two, "small_net large_net another"),
}


@pytest.mark.parametrize("name", PARTS)
def test_all_networks_are_taken_and_named(name):
    make, names = PARTS[name]
    pipeline = make()
    assert sorted(models(pipeline)) == sorted(names.split())
    assert fastdiff.optimize(pipeline) is pipeline
    assert all(isinstance(module._compiled_call_impl, FastCall) for module in models(pipeline).values())
    text = str(fastdiff.explain(pipeline))
    for part in names.split():
        assert f"\n{part}: " in f"\n{text}"
    assert "nothing was captured yet" in text
    assert "scheduler: " in text
    fastdiff.restore(pipeline)
    assert all(module._compiled_call_impl is None for module in models(pipeline).values())
    assert "it is not optimized" in str(fastdiff.explain(pipeline))


def test_schedulers_of_pipelines_inside_a_pipeline():
    pipeline = kandinsky()
    before = pipeline.scheduler, pipeline.prior_scheduler
    fastdiff.optimize(pipeline)
    assert isinstance(pipeline.scheduler, SolverScheduler)
    assert isinstance(pipeline.prior_scheduler, SolverScheduler)
    assert pipeline.prior_pipe.scheduler is pipeline.prior_scheduler
    assert pipeline.decoder_pipe.scheduler is pipeline.scheduler
    fastdiff.restore(pipeline)
    assert (pipeline.scheduler, pipeline.prior_scheduler) == before
    assert (pipeline.decoder_pipe.scheduler, pipeline.prior_pipe.scheduler) == before


def test_both_schedulers_are_taken():
    pipeline = fastdiff.optimize(two())
    assert isinstance(pipeline.first_scheduler, SolverScheduler)
    assert isinstance(pipeline.second_scheduler, SolverScheduler)


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_with_controlnets(count):
    pipeline = with_controlnets(count)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embeddings = torch.randn(2, 1, 7, 12, generator=torch.Generator().manual_seed(1))
    options = dict(
        image=[image] * count if count > 1 else image, prompt_embeds=embeddings[0],
        negative_prompt_embeds=embeddings[1], num_inference_steps=3, output_type="np", height=16, width=16,
    )  # fmt: skip
    expected = pipeline(**options, generator=torch.Generator().manual_seed(0)).images
    fastdiff.optimize(pipeline)
    found = pipeline(**options, generator=torch.Generator().manual_seed(0)).images
    assert abs(found - expected).max() <= 1e-3
    text = str(fastdiff.explain(pipeline))
    assert "nothing was captured yet" not in text.split("\ncontrolnet")[1].split("scheduler: ", maxsplit=1)[0]
    assert "UniPCMultistepScheduler, steps in one pass; 3 until now" in text


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_with_t2i_adapters(count):
    pipeline = with_adapters(count)
    images = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embeddings = torch.randn(2, 1, 7, 12, generator=torch.Generator().manual_seed(1))

    def pictures(scale):
        return pipeline(
            image=list(images) if count > 1 else images[0], prompt_embeds=embeddings[0], output_type="np",
            negative_prompt_embeds=embeddings[1], num_inference_steps=3, height=16, width=16,
            adapter_conditioning_scale=[scale, 0.5] if count > 1 else scale,
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    expected, weaker = pictures(1.0), pictures(0.25)
    assert abs(expected - weaker).max() > 1e-3
    fastdiff.optimize(pipeline)
    for scale, wanted in ((1.0, expected), (0.25, weaker), (1.0, expected)):
        assert abs(pictures(scale) - wanted).max() <= 1e-3
    text = str(fastdiff.explain(pipeline))
    assert "nothing was captured yet" not in text.split("\nadapter")[1].split("scheduler: ", maxsplit=1)[0]


def test_a_pipeline_without_networks():
    class Empty(diffusers.DiffusionPipeline):
        def __init__(self, scheduler):
            super().__init__()
            self.register_modules(scheduler=scheduler)

    with pytest.raises(TypeError, match="finds no network in Empty"):
        fastdiff.optimize(Empty(diffusers.DDIMScheduler()))


def test_explain_of_a_pipeline_takes_no_inputs_and_writes_a_page(tmp_path):
    pipeline = two()
    with pytest.raises(TypeError, match=r"explain\(pipe.unet, inputs\)"):
        fastdiff.explain(pipeline, (torch.zeros(1),))
    fastdiff.explain(pipeline, html=tmp_path / "page.html")
    assert "small_net: UNet2DConditionModel" in (tmp_path / "page.html").read_text()


def test_refresh_reaches_every_network():
    pipeline, inner = with_controlnets(2), with_controlnets(1)
    pipeline.extra, pipeline.inner = unet(), inner  # neither is registered
    weights = [next(net.parameters()) for net in (pipeline.unet, pipeline.controlnet, pipeline.extra, inner.unet)]
    for weight in weights:
        contents.of(weight)
        weight.data.view(-1)[5] += 1
    assert all(map(contents.changed, weights))
    assert fastdiff.refresh(pipeline) is pipeline
    assert not any(map(contents.changed, weights))
