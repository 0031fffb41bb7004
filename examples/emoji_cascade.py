"""Emoji of 32 pixels, enlarged to 128: two bundled models as one call. Ho et al. 2021, Cascaded Diffusion Models."""

import torch

import fastdiff
from fastdiff import pictures

base, upsampler = fastdiff.load("emoji-unet-32"), fastdiff.load("emoji-sr-128")
classes = ["smileys", "animals", "food", "flags"]
stages = [
    fastdiff.Stage(
        base, base.info.shape, steps=20, guidance=2.0, cond=base.info.condition(classes, 4),
        uncond=base.info.condition(None, 4),
    ),
    # The small pictures get noise of time 0.1, so that their errors do not matter, and the upsampler is told.
    fastdiff.Stage(upsampler, upsampler.info.shape, takes="image", augment=0.1, level="level", steps=8),
]  # fmt: skip
small = []
x = fastdiff.cascade(stages, 4, seed=0, on_stage=lambda number, samples: small.append(samples))
pictures.save_png("cascade.png", pictures.grid(x, columns=4))

# The large pictures show what the small ones show: made smaller again, they are near them.
again = torch.nn.functional.interpolate(x, (32, 32), mode="area")
error = (again - small[0].clamp(-1, 1)).square().mean().sqrt().item()
print(f"small pictures found again: root mean square error {error:.3f} of 2")
assert error < 0.15
