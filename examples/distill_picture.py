"""Score distillation of one picture: latents are optimised until the model takes them for what the prompt says."""

import torch

import fastdiff
from fastdiff.train.losses import sds_loss
from fastdiff.train.process import Process

model = fastdiff.load("emoji-ldm-64")
process = Process.of(model.info.schedule, model.info.prediction)
cond, uncond = model.info.condition("red heart", 1), model.info.condition(None, 1)
generator = torch.Generator().manual_seed(0)
z = torch.zeros(1, *model.info.shape).requires_grad_()
optimizer = torch.optim.Adam([z], lr=0.05)
for _ in range(150):
    loss = sds_loss(model, process, z, generator, guidance=10.0, cond=cond, uncond=uncond).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
picture = model.decode(z.detach())
fastdiff.pictures.save_png("distilled.png", fastdiff.pictures.grid(picture, 1), zoom=4)
sample = fastdiff.sample(model, (1, *model.info.shape), guidance=3.0, cond=cond, uncond=uncond, seed=0)
distance = (picture - model.decode(sample)).square().mean().sqrt()
print(f"root mean square distance to a sample of the prompt: {float(distance):.2f}")
