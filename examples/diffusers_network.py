"""The network of a diffusers pipeline under fastdiff's solvers; a small one with random weights stands for yours."""

import diffusers
import torch

import fastdiff
from fastdiff.profiling import get_subject

torch.manual_seed(0)
unet = diffusers.UNet2DModel(
    sample_size=16, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained("pipeline")

# The schedule and the prediction type are read from the pipeline's scheduler.
subject = get_subject("pipeline")
x = fastdiff.sample(
    subject.model,
    (2, *subject.shape),
    schedule=subject.schedule,
    prediction=subject.prediction,
    solver="ddim",
    steps=10,
    grid="leading",  # where diffusers' DDIM has its steps unless told otherwise
    seed=0,
)

# The same steps by diffusers' own scheduler, from the same noise.
scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
scheduler.set_timesteps(10)
y = fastdiff.noise.CounterNoise.of(0, 2).initial((2, 3, 16, 16), torch.float32)
y = y * subject.schedule.prior_std(float(scheduler.timesteps[0] + 1) / 1000)
with torch.no_grad():
    for t in scheduler.timesteps:
        y = scheduler.step(unet(y, t).sample, t, y).prev_sample
difference = float((x - y).abs().max() / y.square().mean().sqrt())
print(f"largest difference to diffusers' DDIM: {difference:.1e} of the RMS")
assert difference < 1e-4
