"""A solver of one's own in a dozen lines: the explicit midpoint rule in lambda, on the data prediction."""

# --8<-- [start:solver]
from math import expm1

import torch

import fastdiff
from fastdiff.solvers import solver


@solver(order=2, evaluations=2, grid="logsnr", name="my-midpoint", source="the explicit midpoint rule, Runge 1895")
def my_midpoint(model, x, s, t, history):
    """One step, from the point s to the point t."""
    if t.sigma == 0:  # lambda is infinite at the data: the last step takes the prediction itself
        return model.x0(x, s)
    middle = model.at_lam((s.lam + t.lam) / 2)
    x_middle = _exact(x, model.x0(x, s), s, middle)
    return _exact(x, model.x0(x_middle, middle), s, t)


def _exact(x, x0, s, t):
    """From s to t if the data prediction x0 did not change in between."""
    return (t.sigma / s.sigma) * x - t.alpha * expm1(s.lam - t.lam) * x0


# --8<-- [end:solver]


schedule = fastdiff.schedules.VPLinear()
mean, std = 0.5, 0.2


def network(x, t):
    """Exact for normal data."""
    point = schedule.point(float(t[0]))
    return point.sigma * (x - point.alpha * mean) / ((point.alpha * std) ** 2 + point.sigma**2)


def error(steps):
    """Distance to the exact solution at t_min, in float64."""
    lam = torch.linspace(float(schedule.lam(1.0)), float(schedule.lam(schedule.t_min)), steps + 1, dtype=torch.float64)
    times = schedule.t_of_lam(lam.numpy())
    times[0], times[-1] = 1.0, schedule.t_min
    x = torch.tensor([[1.3], [-0.4]], dtype=torch.float64)
    got = fastdiff.sample(network, x, schedule=schedule, prediction="eps", solver="my-midpoint", grid=times)
    a, b = schedule.point(1.0), schedule.point(float(times[-1]))
    spread = [((p.alpha * std) ** 2 + p.sigma**2) ** 0.5 for p in (a, b)]
    exact = b.alpha * mean + spread[1] / spread[0] * (x - a.alpha * mean)
    return float((got - exact).abs().max())


errors = [error(steps) for steps in (50, 100, 200)]
print(f"errors {errors}: halving the steps' length divides them by about 4")
assert 3.5 < errors[0] / errors[1] < 4.5
assert 3.5 < errors[1] / errors[2] < 4.5
