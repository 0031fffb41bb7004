"""google/prompt-to-prompt, DDS_zeroshot.ipynb: delta denoising score, and score distillation beside it."""

import torch
from distilled import network, process_of

from fastdiff.train.losses.distillation import dds_loss, sds_loss


def run(case):
    assert case.optimizer == "sgd"
    z = case["z_source"].clone().requires_grad_()
    uncond, target = {"context": case["context_null"]}, {"context": case["context_target"]}
    pixels = z.shape[-1] * z.shape[-2]
    optimizer, squares = torch.optim.SGD([z], lr=case.lr), []
    for timesteps, noise in zip(case["timesteps"], case["noise"]):
        times = [(int(n) + 1) / 1000 for n in timesteps]
        common = dict(guidance=case.guidance_scale, cond=target, uncond=uncond, times=times, noise=noise)
        if case.loss == "dds":
            source = {"context": case["context_source"]}
            loss = dds_loss(network(case), process_of(case), z, case["z_source"], source_cond=source, **common)
        else:
            loss = sds_loss(network(case), process_of(case), z, weighting="uniform", **common)
        optimizer.zero_grad()
        (case.loss_scale * loss.sum() / pixels).backward()
        optimizer.step()
        squares.append(2 * loss.detach().sum() / z.numel())  # the loss is half the square of its gradient
    return {"mean_square_grad": torch.stack(squares), "x_out": z.detach()}
