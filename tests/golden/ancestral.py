"""Cases that are ancestral sampling or DDIM on respaced steps of 1000, with something beside it."""

from family_guided_diffusion import respaced
from toys import VARIANCES, times_of

import fastdiff
from fastdiff.solvers import get_solver


class Ancestral:
    """solver: as the case's metadata say. sample(solver, noise, tensors): the run. toy: the model, with its calls."""

    def __init__(self, case):
        self.case, self.schedule, self.toy = case, case.process, case.toy
        self.kept = respaced(case.respacing)
        self.learned = case.model_var_type == "LEARNED_RANGE"
        ddim = case.sampler == "ddim"
        self.solver = get_solver("ddim") if ddim else get_solver("ddpm", variance=VARIANCES[case.model_var_type])
        self.model = self.toy.network(lambda n: self.schedule.point((n + 1) / 1000), variance=self.learned)
        self.arguments = {
            "schedule": self.schedule,
            "prediction": "eps+variance" if self.learned else "eps",
            "grid": times_of(self.kept),
            "threshold": 1.0 if case.clip_denoised else None,
        }

    def sample(self, solver, noise, tensors):
        x = self.case["x_init"]
        return fastdiff.sample(self.model, x, solver=solver, noise=noise, tensors=tensors, **self.arguments)

    def results(self, x):
        return {"x_out": x, "model_times": [round(t) for t in self.toy.calls]}
