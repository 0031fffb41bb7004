"""Sampling from a model of one's own: any function (x, t) -> tensor will do."""

import torch

import fastdiff

schedule = fastdiff.schedules.VPDiscrete.linear()
mean, std = 0.5, 0.2


def model(x, t):
    """The exact noise prediction for data that is normal with this mean and standard deviation."""
    point = schedule.point((float(t[0]) + 1) / schedule.num_steps)
    variance = (point.alpha * std) ** 2 + point.sigma**2
    return point.sigma * (x - point.alpha * mean) / variance


x = fastdiff.sample(model, (2000, 1), schedule=schedule, prediction="eps", solver="unipc-3", steps=20, seed=0)
print(f"mean {x.mean():.3f} (0.5), standard deviation {x.std():.3f} (0.2)")
assert abs(x.mean() - mean) < 0.02
assert abs(x.std() - std) < 0.02

# The same run in plain PyTorch: the two agree to rounding.
with fastdiff.use("reference"):
    y = fastdiff.sample(model, (2000, 1), schedule=schedule, prediction="eps", solver="unipc-3", steps=20, seed=0)
assert torch.allclose(x, y, atol=1e-5)
