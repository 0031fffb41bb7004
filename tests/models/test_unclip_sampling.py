"""From the embedding of a text to pictures: each stage by our solvers, guidance, seeds, what is refused."""

import pytest
import torch
from test_families import make

import fastdiff
from fastdiff.models.karlo import KarloUNet, KarloUNetConfig
from fastdiff.models.unet_2d import UNet2D, UNet2DModelConfig
from fastdiff.process.noise import seeds_for
from fastdiff.unclip import Text, image_embeddings, text_to_pictures

SHORT = {"prior_options": {"steps": 3}, "decoder_options": {"steps": 3}}


def texts(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    embedding, tokens = torch.randn(batch, 12, generator=generator), torch.randn(batch, 4, 12, generator=generator)
    return Text(embedding, tokens, torch.tensor([[True, True, True, False]]).expand(batch, -1))


@pytest.fixture(params=["unclip-decoder", "karlo-decoder"])
def models(request):
    return make("prior")[0].requires_grad_(False), make(request.param)[0].requires_grad_(False)


def upsampler(seed):
    torch.manual_seed(seed)
    model = KarloUNet(KarloUNetConfig(in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1,
                                      attention_resolutions=(), channel_mult=(1, 2), use_middle_attention=False,
                                      super_res=True)).eval().requires_grad_(False)  # fmt: skip
    torch.nn.init.normal_(model.conv_out.weight, std=0.02)
    return model


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ddpm", "heun", "unipc-2"])
def test_a_prior_that_knows_the_answer(solver):
    """Prediction x0: what a constant network says is what every solver ends at, in the embeddings' own scale."""
    prior, _ = make("prior")
    prior.requires_grad_(False)
    answer = torch.linspace(-1, 1, 12)
    prior.proj_out.weight.zero_()
    prior.proj_out.bias.copy_(answer)
    prior.mean.fill_(0.5)
    prior.std.fill_(3.0)
    options = {"schedule": "cosine", "prediction": "x0", "solver": solver, "steps": 6, "seed": 0}
    found = image_embeddings(prior, texts(2, 1), **options)
    torch.testing.assert_close(found, (3 * answer + 0.5).expand(2, -1))
    other = image_embeddings(prior, texts(2, 1), statistics=(torch.zeros(12), torch.ones(1, 12)), **options)
    torch.testing.assert_close(3 * other + 0.5, found)


def test_pictures(models):
    prior, decoder = models
    text, null = texts(2, 1), texts(1, 2)
    guided = text_to_pictures(prior, decoder, text, null=null, size=8, seed=3, **SHORT)
    assert guided.shape == (2, 3, 8, 8)
    assert guided.abs().max() <= 1.5
    again = text_to_pictures(prior, decoder, Text(*(value[:1] for value in text)), null=null, size=8, seed=3, **SHORT)
    torch.testing.assert_close(again, guided[:1], atol=1e-4, rtol=1e-3)  # a sample is its own at any batch size
    plain = text_to_pictures(prior, decoder, text, size=8, seed=3, **SHORT)
    assert not torch.allclose(plain, guided, atol=1e-3)
    assert not torch.allclose(text_to_pictures(prior, decoder, texts(2, 4), size=8, seed=3, **SHORT), plain, atol=1e-3)
    mine = {**SHORT, "decoder_options": {"steps": 2, "solver": "ddim"}}
    assert not torch.allclose(text_to_pictures(prior, decoder, text, size=8, seed=3, **mine), plain, atol=1e-3)


def test_it_is_the_stages_one_after_the_other(models):
    prior, decoder = models
    text, null = texts(2, 1), texts(2, 2)
    kept = {}
    hook = decoder.register_forward_pre_hook(lambda module, inputs, arguments: kept.update(arguments), with_kwargs=True)
    pictures = text_to_pictures(prior, decoder, text, null=null, size=8, seed=[5, 6], **SHORT)
    hook.remove()
    image, none = kept["image"][:2], kept["image"][2:]
    torch.testing.assert_close(none, decoder.conditioning.null_image.expand(2, -1))
    arguments = {"text": text.embedding, "tokens": text.tokens, "mask": text.mask}
    empty = {"text": null.embedding, "tokens": null.tokens, "mask": null.mask}
    seeds = seeds_for((5, 6), 1)
    expected = fastdiff.sample(decoder, (2, 3, 8, 8), schedule="cosine", prediction="eps+variance", threshold=1.0,
                               steps=3, guidance=8.0, cond={"image": image, **arguments},
                               uncond={"image": none, **empty}, seed=seeds)  # fmt: skip
    torch.testing.assert_close(pictures, expected)


@pytest.mark.parametrize("count", [1, 2])
def test_upsampled(models, count):
    prior, decoder = models
    networks = [upsampler(index) for index in range(count)]
    calls = [0] * count
    for index, network in enumerate(networks):
        network.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    given = networks[0] if count == 1 else networks
    pictures = text_to_pictures(prior, decoder, texts(2, 1), size=8, upsampler=given, upsampled=16, seed=3,
                                upsampler_options={"steps": 4}, **SHORT)  # fmt: skip
    assert pictures.shape == (2, 3, 16, 16)
    assert torch.isfinite(pictures).all()
    assert calls == ([4] if count == 1 else [3, 1])


def test_upsampled_by_diffusers_network(models):
    """Karlo's super-resolution there: the small picture is in the input's last channels."""
    prior, decoder = models
    torch.manual_seed(0)
    config = UNet2DModelConfig(in_channels=6, out_channels=3, block_out_channels=(32, 32), layers_per_block=1,
                               norm_num_groups=8, down_block_types=("ResnetDownsampleBlock2D",) * 2,
                               up_block_types=("ResnetUpsampleBlock2D",) * 2, mid_block_type="UNetMidBlock2D",
                               add_attention=False)  # fmt: skip
    network, kept = UNet2D(config).eval().requires_grad_(False), []
    network.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    pictures = text_to_pictures(prior, decoder, texts(2, 1), size=8, upsampler=network, upsampled=16, seed=3,
                                upsampler_options={"steps": 2}, **SHORT)  # fmt: skip
    small = text_to_pictures(prior, decoder, texts(2, 1), size=8, seed=3, **SHORT)
    assert pictures.shape == (2, 3, 16, 16)
    wanted = torch.nn.functional.interpolate(small, (16, 16), mode="bicubic", antialias=True)
    assert [torch.equal(value[:, 3:], wanted) for value in kept] == [True, True]


def test_what_is_refused(models):
    prior, decoder = models
    with pytest.raises(ValueError, match="upsampler must be one network or two, got 3"):
        text_to_pictures(prior, decoder, texts(1, 1), size=8, upsampler=[upsampler(0)] * 3, upsampled=16, **SHORT)
    with pytest.raises((ValueError, fastdiff.SamplingError), match=r"embedding must be \(2, 12\), got \(2, 9\)"):
        text_to_pictures(prior, decoder, texts(2, 1)._replace(embedding=torch.zeros(2, 9)), size=8, **SHORT)
    prior.mean = prior.std = None
    with pytest.raises(ValueError, match="does not know the mean"):
        text_to_pictures(prior, decoder, texts(1, 1), size=8, **SHORT)


@torch.no_grad()
def test_the_prior_of_dalle2_by_a_solver():
    model, arguments = make("prior-dalle2")
    cond = {name: arguments[name] for name in ("text", "tokens")}
    nothing = torch.zeros(3, dtype=torch.bool)
    found = fastdiff.sample(model, (3, 12), schedule="cosine", prediction="x0", steps=4, seed=0, guidance=2.0,
                            cond={**cond, "keep_text": ~nothing, "keep_image": ~nothing},
                            uncond={**cond, "keep_text": nothing, "keep_image": nothing})  # fmt: skip
    assert found.shape == (3, 12)
    assert torch.isfinite(found).all()


@torch.no_grad()
def test_optimized(models):
    for model, name in zip(models, ("prior", "karlo-decoder")):
        _, arguments = make(name)
        expected = model(**arguments)
        torch.testing.assert_close(fastdiff.optimize(model)(**arguments), expected, atol=2e-5, rtol=1e-4)
