"""ashawkey/stable-dreamfusion and threestudio: an optimisation by score distillation."""

import torch
from distilled import loss_of


def run(case):
    theta = case["theta"].requires_grad_()
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[case.optimizer]([theta], lr=case.lr)
    losses = []
    for timesteps, noise in zip(case["timesteps"], case["noise"]):
        loss = loss_of(case, theta, timesteps, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "x_out": theta.detach()}
