"""HJ-harry/DiffusionMBIR: conjugate gradients, as in the textbook."""

import torch
from slices import projection

from fastdiff.editing import TotalVariationADMM, conjugate_gradients


def run(case):
    like = torch.zeros_like(case["x_out"])
    problem = TotalVariationADMM(case["measurement"], projection(case["A"]), like, rho=case.rho, lamb=0.0)
    x = conjugate_gradients(problem.normal, problem.ATy, like, case.inner_iterations, case.stop_residual)
    return {"x_out": x}
