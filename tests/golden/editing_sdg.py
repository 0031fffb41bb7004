"""xh-liu/SDG_code: semantic diffusion guidance."""

import torch
from family_guided_diffusion import respaced
from feature_network import Recorded, features, layers
from toys import VARIANCES, times_of

import fastdiff
from fastdiff.guidance import Classifier, Gradients
from fastdiff.guidance.by_network import image_similarity, style_similarity, text_similarity
from fastdiff.solvers import get_solver


def run(case):
    process, toy, terms = case.process, case.toy, {}
    if case.text_weight:
        terms["text"] = Classifier(Recorded(text_similarity(features, case["text_features"])), case.text_weight)
    if case.image_weight:
        noise = lambda k: case["noise_ref"][k]  # noqa: E731
        if case.image_loss == "semantic":
            gradient, scale = image_similarity(features, case["ref"], process, noise=noise), case.image_weight
        else:
            gradient = style_similarity(layers, case["ref"], process, noise=noise, across_batch=True)
            scale = 1e10 * case.image_weight
        terms["image"] = Classifier(Recorded(gradient), scale)
    learned = case.model_var_type == "LEARNED_RANGE"
    x = fastdiff.sample(
        toy.network(lambda n: process.point((n + 1) / 1000), variance=learned),
        case["x_init"],
        schedule=process,
        prediction="eps+variance" if learned else "eps",
        solver=get_solver("ddpm", variance=VARIANCES[case.model_var_type]),
        grid=times_of(respaced(case.respacing)),
        guidance=Gradients(terms),
        threshold=1.0 if case.clip_denoised else None,
        noise=case["noise"],
    )
    found = {"x_out": x, "model_times": [round(n) for n in toy.calls]}
    gradients = [[term.scale * g for g in term.gradient.given] for term in terms.values()]
    found["gradients"] = sum(torch.stack(each) for each in gradients)
    return found
