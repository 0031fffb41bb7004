"""HJ-harry/DiffusionMBIR: ADMM with total variation."""

import torch
from slices import projection

from fastdiff.editing import admm_tv


def run(case):
    x = admm_tv(
        case["measurement"],
        projection(case["A"]),
        torch.zeros_like(case["x_out"]),
        rho=case.rho,
        lamb=case.lamb,
        tv=case.tv,
        outer_iterations=case.outer_iterations,
        inner_iterations=case.inner_iterations,
        **({} if case.stop_residual is None else {"stop_residual": case.stop_residual}),
    )
    return {"x_out": x}
