"""One line makes a pipeline of diffusers faster. A small network with random weights stands for yours; with `--full` it
has the architecture of google/ddpm-cifar10-32."""

import sys
import time

import diffusers
import torch

import fastdiff

full = "--full" in sys.argv
torch.manual_seed(0)
unet = diffusers.UNet2DModel(
    sample_size=32 if full else 16,
    block_out_channels=(128, 256, 256, 256) if full else (64, 64),
    layers_per_block=2 if full else 1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")[: 4 if full else 2],
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")[0 if full else 2 :],
)
pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
pipe.set_progress_bar_config(disable=True)


def sample():
    """Pictures and seconds."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    images = pipe(batch_size=8 if full else 2, generator=generator, num_inference_steps=10, output_type="np").images
    return images, time.perf_counter() - started


sample()
expected, before = sample()

fastdiff.optimize(pipe)  # the line

_, first = sample()  # captures the network
found, after = sample()
print(f"10 steps: {before:.2f} s, then {first:.2f} s and {after:.2f} s, {before / after:.2f} times as fast")
print(f"largest difference of a pixel: {abs(found - expected).max():.1e}")
assert abs(found - expected).max() < 1e-3
