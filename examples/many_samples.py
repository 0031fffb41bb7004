"""Many samples of a model of your own, by two worker processes, and how far they are from the data."""

from pathlib import Path

import torch

from fastdiff import distributed
from fastdiff.profiling import Subject
from fastdiff.schedules import VPDiscrete

SCHEDULE = VPDiscrete.linear()


class Points(torch.nn.Module):
    """The noise in x, for pictures of 8 x 8 whose pixels are all normal with mean 0.2 and spread 0.3."""

    def forward(self, x, t):
        point = SCHEDULE.point((float(t[0]) + 1) / SCHEDULE.num_steps)
        variance = (0.3 * point.alpha) ** 2 + point.sigma**2
        return point.sigma * (x - 0.2 * point.alpha) / variance


def subject():
    """What each worker loads: `--model many_samples.py:subject` on the command line."""
    return Subject("points", Points(), (3, 8, 8), SCHEDULE, "eps")


if __name__ == "__main__":
    found = distributed.sample(
        f"{Path(__file__).resolve()}:subject", "points", count=200, batch=25, shard=50, steps=10, features="pixels",
        workers=2,
    )  # fmt: skip
    print(f"{found.samples} samples in {found.store}, SHA-256 {found.sha256[:12]}")
    again = distributed.sample(None, "points", resume=True)  # nothing is missing: nothing is made
    assert again.sha256 == found.sha256
