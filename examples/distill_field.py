"""Score distillation of a small 3-D field: voxels whose views look like a prompt's picture from several sides.

The field has 16^3 voxels, each with a colour and a density. In each step it is turned by random angles and rendered,
the views are encoded, and `sds_loss` says how the latents should change. Autograd carries that back to the voxels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdiff
from fastdiff.train.losses import sds_loss
from fastdiff.train.process import Process


def render(field: Tensor, angles: Tensor) -> Tensor:
    """Views (B, 3, 64, 64) in [-1, 1], on white, of a field (4, D, H, W) that is turned about its vertical axis."""
    zero, one, cos, sin = torch.zeros_like(angles), torch.ones_like(angles), angles.cos(), angles.sin()
    turns = torch.stack([cos, zero, sin, zero, zero, one, zero, zero, -sin, zero, cos, zero], 1).view(-1, 3, 4)
    grid = F.affine_grid(turns, [len(angles), 4, 16, 64, 64], align_corners=False)
    seen = F.grid_sample(field.expand(len(angles), *field.shape), grid, align_corners=False, padding_mode="border")
    alpha = 1 - (-F.softplus(seen[:, 3:] - 2)).exp()
    passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :, :1]), 1 - alpha + 1e-6], 2), 2)
    return (passed[:, :, :-1] * alpha * seen[:, :3].tanh()).sum(2) + passed[:, :, -1]


model = fastdiff.load("emoji-ldm-64")
process = Process.of(model.info.schedule, model.info.prediction)
cond, uncond = model.info.condition("red heart", 2), model.info.condition(None, 2)
generator = torch.Generator().manual_seed(0)
field = (0.1 * torch.randn(4, 16, 16, 16, generator=generator)).requires_grad_()
optimizer = torch.optim.Adam([field], lr=0.05)
front = torch.linspace(-math.pi / 4, math.pi / 4, 2)


def distance() -> float:
    """How far the model thinks that views from the front are from its pictures, at fixed times and noises."""
    with torch.no_grad():
        fixed = torch.Generator().manual_seed(1)
        views = render(field, front)
        return float(
            sds_loss(model, process, model.encode(views), fixed, guidance=10.0, cond=cond, uncond=uncond).mean()
        )


before = distance()
for _ in range(60):
    angles = (torch.rand(2, generator=generator) - 0.5) * math.pi
    views = render(field, angles)
    loss = sds_loss(model, process, model.encode(views), generator, guidance=10.0, cond=cond, uncond=uncond).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"half the squared gradient: {before:.0f} before, {distance():.0f} after")
fastdiff.pictures.save_png("field.png", fastdiff.pictures.grid(render(field, front).detach(), 2), zoom=4)
