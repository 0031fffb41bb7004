"""A ControlNet: the bundled latent model draws a prompt along given edges. Zhang et al. 2023."""

import torch

import fastdiff
from fastdiff import pictures
from fastdiff.models.edges import canny

model = fastdiff.load("emoji-control-edges")
info = model.info

# The edges of a picture, here one that the model itself draws; 1 on an edge.
common = {"steps": 20, "guidance": 3.0}
z = fastdiff.sample(
    model, (1, *info.shape), seed=1, cond=info.condition("red apple", 1), uncond=info.condition(None, 1), **common
)
edges = canny(model.decode(z))  # (1, 1, 64, 64)

# Other prompts along these edges; the condition without a prompt has them too.
prompts = ["green apple", "tomato", "tangerine", "blue heart"]
given = {"cond": info.condition(prompts, 4, image=edges), "uncond": info.condition(None, 4, image=edges)}
x = model.decode(fastdiff.sample(model, (4, *info.shape), seed=2, **given, **common))
free = {"cond": info.condition(prompts, 4), "uncond": info.condition(None, 4)}
y = model.decode(fastdiff.sample(model, (4, *info.shape), seed=2, **free, **common))


def found(samples):
    """The share of the given edges that the samples have within a pixel."""
    near = torch.nn.functional.max_pool2d(canny(samples), 3, stride=1, padding=1)
    return ((near * edges).sum() / (len(samples) * edges.sum())).item()


shown = [(1 - 2 * edges).expand(4, 3, -1, -1), x, y]
pictures.save_png("edges.png", pictures.grid(torch.cat(shown), columns=4), zoom=2)
print(f"edges found again: {found(x):.0%} with them given, {found(y):.0%} without")
assert found(x) > found(y) + 0.1
