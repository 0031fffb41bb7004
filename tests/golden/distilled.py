"""What the families of score distillation share: the exact noise for a time of each sample, and the loss of a case."""

import torch

from fastdiff.train.losses.distillation import sds_loss
from fastdiff.train.process import Process


def network(case):
    """eps of a batch whose samples have different times."""
    process, toy = case.process, case.toy

    def model(x, t, context):
        points = [process.point((float(n) + 1) / 1000) for n in t]
        contexts = context.expand(len(x), *context.shape[1:])
        each = [toy.eps(x[k : k + 1], p.alpha, p.sigma, contexts[k : k + 1]) for k, p in enumerate(points)]
        return torch.cat(each)

    return model


def process_of(case):
    return Process.of(case.process, case.prediction)


def loss_of(case, theta, timesteps, noise):
    """The mean over the batch, as both implementations have it."""
    forms = {"uncond + g (cond - uncond)": 0.0, "cond + g (cond - uncond)": 1.0}
    weighting = case.weighting
    if weighting == "sjc" and not case.var_red:
        weighting = "sjc-no-reduction"
    return sds_loss(
        network(case),
        process_of(case),
        theta,
        guidance=case.guidance_scale + forms[case.guidance_form],
        cond={"context": case["context"]},
        uncond={"context": case["context_null"]},
        weighting=weighting,
        scale=case.grad_scale,
        clip=case.grad_clip,
        image=case.image_loss,
        times=[(int(n) + 1) / 1000 for n in timesteps],
        noise=noise,
    ).mean()
