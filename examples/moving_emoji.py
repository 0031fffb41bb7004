"""A U-Net for videos learns how emoji move: four frames, drawn together. Trains for half a minute."""

import torch
import torch.nn.functional as F

import fastdiff
from fastdiff import pictures
from fastdiff.models.video_unet import Unet3D, Unet3DConfig

FRAMES, SIZE, SPRITE = 4, 8, 6
torch.manual_seed(0)

# The pictures that move: emoji of the bundled model, made smaller.
emoji = fastdiff.load("emoji-unet-32")
sprites = fastdiff.sample(
    emoji, (3, *emoji.info.shape), steps=8, seed=1, guidance=2.0,
    cond=emoji.info.condition(["smileys", "food", "flags"], 3), uncond=emoji.info.condition(None, 3),
)  # fmt: skip
sprites = F.interpolate(sprites.clamp(-1, 1), (SPRITE, SPRITE), mode="area")
canvas = F.pad(sprites, (0, SIZE - SPRITE, 1, 1), value=1.0)


def videos(count):
    """(count, 3, FRAMES, SIZE, SIZE) in [-1, 1]: each a sprite that moves two pixels a frame, to the left or right, and
    comes in again on the other side."""
    chosen = torch.randint(len(sprites), (count,)).tolist()
    starts = torch.randint(SIZE, (count,)).tolist()
    steps = (4 * torch.randint(2, (count,)) - 2).tolist()
    return torch.stack([
        torch.stack([canvas[i].roll(start + step * frame, -1) for frame in range(FRAMES)], dim=1)
        for i, start, step in zip(chosen, starts, steps)
    ])  # fmt: skip


def unsteady(x):
    """Of a video, how far each frame is from the one before, moved by two pixels: the mean square, the better way."""
    ways = [(x[:, :, 1:] - x[:, :, :-1].roll(step, -1)).square().mean((1, 2, 3, 4)) for step in (-2, 2)]
    return torch.minimum(*ways)


schedule = fastdiff.schedules.VPDiscrete.cosine()
model = Unet3D(Unet3DConfig(dim=16, dim_mults=(1, 2), attn_heads=2, attn_dim_head=16, init_kernel_size=3))
STEPS, BATCH = 400, 8
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    x0 = videos(BATCH)
    eps, points = torch.randn_like(x0), schedule.points(torch.rand(BATCH).numpy())
    alpha, sigma, t = (
        torch.tensor([value(p) for p in points]).float()
        for value in (lambda p: p.alpha, lambda p: p.sigma, lambda p: schedule.model_time(p.t))
    )
    alpha, sigma = alpha.view(-1, 1, 1, 1, 1), sigma.view(-1, 1, 1, 1, 1)
    loss = (model(alpha * x0 + sigma * eps, t) - (alpha * eps - sigma * x0)).square().mean()  # predicts v
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    slower.step()

model.eval().requires_grad_(False)
x = fastdiff.sample(
    model, (8, 3, FRAMES, SIZE, SIZE), schedule=schedule, prediction="v", solver="dpmpp-2m", steps=15, seed=0
)
frames = x.transpose(1, 2).flatten(0, 1)  # a row is a video
pictures.save_png("videos.png", pictures.grid(frames, columns=FRAMES), zoom=4)
ours, mixed = unsteady(x).median().item(), unsteady(x[:, :, torch.tensor([0, 2, 3, 1])]).median().item()
print(f"from a frame to the next, moved by two pixels: {ours:.3f}; with the frames in another order: {mixed:.3f}")
assert ours < 0.5 * mixed
