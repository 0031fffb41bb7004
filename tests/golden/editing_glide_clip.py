"""openai/glide-text2im, CLIPModel.cond_fn: CLIP guidance, with a variance between its bounds."""

import torch
from family_guided_diffusion import respaced
from feature_network import Recorded, features
from toys import times_of

import fastdiff
from fastdiff import Classifier
from fastdiff.guidance.by_network import text_similarity
from fastdiff.solvers import get_solver


def run(case):
    process, toy = case.process, case.toy
    network = toy.network(lambda n: process.point((n + 1) / 1000))
    shares = {"FIXED_SMALL": lambda x: -torch.ones_like(x), "FIXED_LARGE": torch.ones_like, "LEARNED_RANGE": torch.tanh}
    share = shares[case.model_var_type]
    clip = Recorded(text_similarity(features, case["text_features"], eps=case.normalization_eps))
    scale = case.grad_scale * case.logit_scale
    x = fastdiff.sample(
        lambda x, t: torch.cat([network(x, t), share(x)], 1),
        case["x_init"],
        schedule=process,
        prediction="eps+variance",
        solver=get_solver("ddpm", variance="learned"),
        grid=times_of(respaced(case.respacing)),
        guidance=Classifier(clip, scale),
        threshold=1.0 if case.clip_denoised else None,
        noise=case["noise"],
    )
    gradients = scale * torch.stack(clip.given)
    return {"x_out": x, "model_times": [round(n) for n in toy.calls], "gradients": gradients}
