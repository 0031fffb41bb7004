"""Ho et al. 2022, Video Diffusion Models, eq. 7, by the formula: the authors published no code."""

import numpy as np
import torch

from fastdiff.editing import reconstruct
from fastdiff.schedules import Schedule


class Table(Schedule):
    """alpha and sigma by the number of steps that are left."""

    name, t_min = "table", 1.0

    def __init__(self, alphas, sigmas):
        self.alphas, self.sigmas, self.t_max = alphas, sigmas, float(len(alphas) - 1)

    def log_alpha(self, t):
        return np.log(self.alphas[self._places(t)])

    def alpha(self, t):
        return self.alphas[self._places(t)]

    def sigma(self, t):
        return self.sigmas[self._places(t)]

    def t_of_lam(self, lam):
        raise NotImplementedError

    def rates(self, t):
        raise NotImplementedError

    def _places(self, t):
        return len(self.alphas) - 1 - np.asarray(t).astype(int)


def run(case):
    schedule, toy = Table(case["alphas"].numpy(), case["sigmas"].numpy()), case.toy
    steps, shape = case.steps, case["x_init"].shape
    assert toy.shape == tuple(shape)
    given = {}
    if case.kind == "frames":
        mask = torch.zeros(shape)
        mask[case.frames] = 1
        known = torch.zeros(shape, dtype=torch.float64)
        known[mask == 1] = case["x_known"]
        given = dict(mask=mask, known=known[None])
    else:
        means = lambda x0: x0.unflatten(-1, (-1, case.factor)).mean(-1).flatten()  # noqa: E731
        given = dict(operator=means, known=case["x_known"])
    found = {"gradients": [], "x0_guided": []}

    def seen(x0, gradient):
        found["x0_guided"].append(x0[0])
        found["gradients"].append(gradient[0])

    x = reconstruct(
        toy.network(schedule.point), case["x_init"][None], weight=case.weight, replace=case.replace, schedule=schedule,
        prediction=case.prediction or "eps", solver=case.sampler, grid=np.arange(steps, -1.0, -1.0),
        noise=case["noise"][:, None] if "noise" in case else None, seen=seen, **given,
    )  # fmt: skip
    return {"x_out": x[0], **{name: torch.stack(each) for name, each in found.items()}}
