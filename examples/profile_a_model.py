"""Which solver, how many steps: for a model of one's own, with the reason in a report."""

import torch

import fastdiff
from fastdiff.profiling import Subject

schedule = fastdiff.schedules.VPDiscrete.linear()


class Network(torch.nn.Module):
    """Stands for a trained network: exact for pixels that are -0.6 or 0.6, give or take 0.2."""

    def forward(self, x, t):
        point = schedule.point((float(t[0]) + 1) / schedule.num_steps)
        variance = (0.2 * point.alpha) ** 2 + point.sigma**2
        centre = 0.6 * torch.tanh(0.6 * point.alpha * x / variance)
        x0 = centre + 0.04 * point.alpha / variance * (x - point.alpha * centre)
        return (x - point.alpha * x0) / point.sigma


def subject():
    """What `fastdiff profile --model examples/profile_a_model.py:subject` calls."""
    return Subject("two values", Network(), shape=(3, 16, 16), schedule=schedule, prediction="eps")


if __name__ == "__main__":
    found = fastdiff.profile(
        subject, solvers=["ddim", "dpmpp-2m", "unipc-3"], steps=[5, 10, 20], samples=12, reference_steps=80,
        target_rmse=0.1, out="profile",
    )  # fmt: skip
    print(f"{found.reason}: {found.picked['label']}; see {found.folder / 'index.html'}")
