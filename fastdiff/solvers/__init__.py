"""Solvers by name. A solver is the formula of its paper: `step(model, x, s, t, history)` takes the state from s to t.

`s` and `t` are `Point`s (t, alpha, sigma, lam as floats), `model.at_lam(lam)` is the one in between with that lambda.
`model.x0(x, s)` and `model.eps(x, s)` call the network.
`x` and what the model returns add, subtract and scale by floats: they are tensors in the reference and linear forms
when a Program is traced, so a step must not look inside them. `history` is a deque of the newest `history=` entries
that earlier steps appended; solvers that declare `noise` receive a function that draws a standard normal.
"""

from fastdiff.solvers import (  # noqa: F401  (each registers its solvers)
    adaptive,
    analytic_dpm,
    consistency,
    ddim,
    ddpm,
    deis,
    dpm2,
    dpm_multistep,
    dpm_solver,
    dpmpp,
    dpmpp_sde,
    edm,
    euler,
    exponential_rk,
    flow,
    heun,
    ncsn,
    pndm,
    quasi_taylor,
    rho_rk,
    rk45,
    score_sde,
    splitting,
    unipc,
)
from fastdiff.solvers.registry import SOLVERS, Solver, get_solver, solver

__all__ = ["SOLVERS", "Solver", "get_solver", "solver"]
